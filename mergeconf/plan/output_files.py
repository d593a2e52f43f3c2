"""Which small files belong to the output, and what do they say?

Everything but the weights is the donor's: the base's, or the first model's. The config is written
anew where the merge changes what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeconf.dtypes import DType
from mergeconf.plan.sources import Model
from mergeconf.recipe import Recipe

RECIPE_NAME = "recipe.yaml"
"""The recipe, in the output folder."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


def output_files(
    recipe: Recipe,
    donor: Model,
    config: dict[str, Any] | None,
    out_dtype: DType | None,
    *,
    unties: bool,
) -> tuple[dict[str, bytes | Path], dict[str, Any] | None]:
    """Return the output's small files by name (content, or the file to copy), and its config.

    Args:
        recipe: Is copied into the output, unchanged.
        donor: The model whose files are taken.
        config: The donor's config with the output's number of layers, or None where it has none.
        out_dtype: Format of all weights, or None where each keeps its own.
        unties: Whether the output has a head of its own though the donor's config ties it.
    """
    files = dict(donor.files)
    if config is not None:
        config = _config(config, out_dtype, unties=unties)
        if config != donor.config:
            files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    files[RECIPE_NAME] = recipe.text.encode()
    return files, config


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
