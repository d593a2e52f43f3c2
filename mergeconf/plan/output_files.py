"""Which small files belong to the output, and what do they say?

Everything but the weights is the donor's: the base's, or the first model's; the tokenizer is that
which the recipe asks for. A file is written anew where the merge changes what it says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergeconf.checkpoint.chat_templates import TEMPLATES, template_of, with_template
from mergeconf.checkpoint.sidecars import is_tokenizer_file
from mergeconf.checkpoint.vocabulary_files import load_object
from mergeconf.dtypes import DType
from mergeconf.errors import Problem
from mergeconf.plan.alignment import says_tied
from mergeconf.plan.sources import Model
from mergeconf.plan.token_ids import TokenIds
from mergeconf.plan.vocabularies import OutputTokenizer
from mergeconf.recipe import Recipe

RECIPE_NAME = "recipe.yaml"
"""The recipe, in the output folder."""
GENERATION = "generation_config.json"
_DTYPE_KEYS = ("dtype", "torch_dtype")


def output_files(
    recipe: Recipe,
    models: Iterable[Model],
    config: dict[str, Any] | None,
    tokenizer: OutputTokenizer | None,
    out_dtype: DType | None,
    *,
    unties: bool,
) -> tuple[dict[str, bytes | Path], dict[str, Any] | None, list[Problem]]:
    """Return the output's small files by name (content, or the file to copy), its config, and what
    is to be said of them.

    Args:
        recipe: Is copied into the output, unchanged.
        models: The recipe's models; the files of the first are taken.
        config: Its config with the output's number of layers, or None where it has none.
        tokenizer: The output's tokenizer, or None where it is that of the first model.
        out_dtype: Format of all weights, or None where each keeps its own.
        unties: Whether the output has a head of its own though the config ties it.
    """
    models = list(models)
    donor = models[0]
    files = dict(donor.files)
    notes: list[Problem] = []
    if tokenizer is not None:
        files = {name: file for name, file in files.items() if not is_tokenizer_file(name)}
        files |= {name: file for name, file in tokenizer.taken.items() if is_tokenizer_file(name)}
        files |= tokenizer.files
    if config is not None:
        silent = says_tied(config) is None
        config = _config(config, out_dtype, unties=unties)
        if unties and silent:  # the type of model would tie them
            config["tie_word_embeddings"] = False
        if tokenizer is not None:
            config = TokenIds(tokenizer, "config.json", notes).config(config)
        if config != donor.config:
            files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    if tokenizer is not None and GENERATION in files:
        before = load_object(donor.files, GENERATION)
        after = TokenIds(tokenizer, GENERATION, notes).config(before)
        if after != before:
            files[GENERATION] = (json.dumps(after, indent=2) + "\n").encode()
    if recipe.chat_template is not None:
        notes.extend(_set_template(recipe, recipe.chat_template, models, files))
    files[RECIPE_NAME] = recipe.text.encode()
    return files, config, notes


def _config(config: Mapping[str, Any], out_dtype: DType | None, *, unties: bool) -> dict[str, Any]:
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            changed[key] = _config(value, out_dtype, unties=unties)
    if out_dtype is not None:
        for key in _DTYPE_KEYS:
            if key in config:
                changed[key] = out_dtype.name
    if unties and "tie_word_embeddings" in config:
        changed["tie_word_embeddings"] = False
    return changed


def _set_template(
    recipe: Recipe, wanted: str, models: Iterable[Model], files: dict[str, bytes | Path]
) -> list[Problem]:
    """Write the chat template that the recipe asks for into the output's files."""
    location = recipe.locations.get("chat_template")
    if not any(is_tokenizer_file(name) for name in files):
        message = "the output has no tokenizer to which a chat template could belong"
        return [Problem(message, "chat_template", location)]
    template: str | None = TEMPLATES.get(wanted, wanted)
    if wanted == "auto":
        template = _most_frequent(models)
    if template is None:
        return [
            Problem(
                "no model has a chat template, so the output has none",
                "chat_template",
                location,
                severity="warning",
                code="no-chat-template",
            )
        ]
    files |= with_template(files, template)
    return []


def _most_frequent(models: Iterable[Model]) -> str | None:
    """Return the template that most models have; of several, that of the first model in order."""
    templates = (template_of(model.files) for model in models)
    found = Counter(template.strip() for template in templates if template and template.strip())
    return found.most_common(1)[0][0] if found else None
