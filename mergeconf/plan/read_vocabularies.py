"""Which tokens do a recipe's models have, and which of their tensors have one row a token?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeconf.checkpoint.sidecars import find_sidecars
from mergeconf.checkpoint.vocabulary import Vocabulary, read_vocabulary
from mergeconf.checkpoint.vocabulary_files import Files, Listed
from mergeconf.errors import CheckpointError, PlanError, Problem, did_you_mean
from mergeconf.plan.output_vocabulary import Tokens, describe_tokens
from mergeconf.plan.sources import Model, Source
from mergeconf.recipe import ModelRef, Recipe, TokenizerChoice

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|shared|embed_in|tok_embeddings|embeddings)\.weight$"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head(\.linear|\.decoder)?|embed_out|output_layer|cls\.predictions(\.decoder)?"
    r"|vocab_projector|decoder|shared_head\.head|output)\.(weight|bias)$"
)
_BIAS_ROW = "final_logits_bias"
"""End of the name of a bias that is stored as a matrix of one row."""
_OTHER_TABLE = "embed_tokens_per_layer.weight"
"""End of the name of tables that have one row a token, but not for all tokens."""
_NOT_SIZES = re.compile(r"vocab|_token_id|_token_index|_ids?$")
"""Keys of a config whose numbers are no sizes of anything else."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The tokenizer that the output's is made from."""

    files: Files
    vocabulary: Vocabulary
    rows: int | None
    """Rows of its model's embeddings, None where that is not known."""
    key: str | None
    """Of the model, None for one that is not merged."""


@dataclass(frozen=True, slots=True)
class Known:
    """The vocabularies of a recipe's models, by the models' keys."""

    vocabularies: Mapping[str, Vocabulary]
    tokens: Mapping[str, Tokens]
    taken: Taken

    @property
    def count(self) -> int:
        """Number of tokens of all vocabularies that differ."""
        different = {
            id(each): each for each in (*self.vocabularies.values(), self.taken.vocabulary)
        }
        return sum(len(each.tokens) for each in different.values())


def read_known(
    recipe: Recipe, choice: TokenizerChoice, models: Mapping[str, Model]
) -> tuple[Known, list[Problem]]:
    """Return the vocabularies of a recipe's models, and warnings.

    Raises:
        CheckpointError: a tokenizer is missing, damaged or not understood.
        PlanError: an embedding is not as the config says.
    """
    notes: list[Problem] = []
    vocabularies: dict[str, Vocabulary] = {}
    tokens: dict[str, Tokens] = {}
    problems: list[Problem] = []
    first = next(iter(models))
    read: dict[object, Vocabulary | None] = {}
    for key, model in models.items():
        try:
            rows = rows_of(model)
            found = _read(model.files, read)
            if found is None:
                found = _assumed(model, rows, first, models, vocabularies)
                notes.append(_assumed_note(model, models[first]))
        except (CheckpointError, PlanError) as error:
            problems.extend(error.problems)
            continue
        vocabularies[key] = found
        tokens[key] = Tokens.of(model.label, found, rows)
        notes.extend(_beyond(model, found, tokens[key]))
    if problems:
        raise CheckpointError(dict.fromkeys(problems))
    taken = _taken(recipe, choice, models, first, vocabularies)
    return Known(vocabularies, tokens, taken), notes


def _read(files: Files, read: dict[object, Vocabulary | None]) -> Vocabulary | None:
    """Return a vocabulary; models with the same files share one."""
    names = [name for name in files if "/" not in name and _is_tokenizer_file(name)]
    key = tuple((name, _content(files[name])) for name in sorted(names))
    if key not in read:
        read[key] = read_vocabulary(files)
    return read[key]


def _is_tokenizer_file(name: str) -> bool:
    return name.endswith((".model", ".tiktoken")) or name.startswith(
        ("tokenizer", "vocab", "added_tokens", "special_tokens", "tekken")
    )


def _content(source: bytes | Path) -> object:
    """Return what tells a file's content from another's: a digest, or its place if unreadable."""
    if isinstance(source, bytes):
        return hash(source)
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return str(source)


def _assumed(
    model: Model,
    rows: int | None,
    first: str,
    models: Mapping[str, Model],
    known: Mapping[str, Vocabulary],
) -> Vocabulary:
    """Return the base's vocabulary for a model that has no tokenizer but as many rows."""
    if models[first] is model:
        message = "has no tokenizer, which the recipe's 'tokenizer' needs"
        raise CheckpointError(Problem(message, model.label, hint="put its files into the folder"))
    if first not in known:  # that is told already
        return Vocabulary({}, {}, Listed("", {}))
    if rows != rows_of(models[first]):
        raise CheckpointError(
            Problem(
                f"has no tokenizer, and {rows} rows in its embedding where '{models[first].label}' "
                f"has {rows_of(models[first])}",
                where=model.label,
                hint="put its tokenizer's files into the folder",
            )
        )
    return known[first]


def _assumed_note(model: Model, base: Model) -> Problem:
    return Problem(
        f"has no tokenizer; its tokens are taken to be those of '{base.label}'",
        where=model.label,
        severity="warning",
        code="no-tokenizer",
    )


def _beyond(model: Model, vocabulary: Vocabulary, tokens: Tokens) -> Iterator[Problem]:
    """Say which tokens have no row in a model's embedding."""
    if vocabulary.end > tokens.rows:
        beyond = [token for token, number in vocabulary.tokens.items() if number >= tokens.rows]
        yield Problem(
            f"{len(beyond):,} tokens have ids beyond the {tokens.rows:,} rows of the embedding and "
            f"are left out: {describe_tokens(beyond)}",
            where=model.label,
            severity="warning",
            code="tokens-without-row",
        )


def _taken(
    recipe: Recipe,
    choice: TokenizerChoice,
    models: Mapping[str, Model],
    first: str,
    known: Mapping[str, Vocabulary],
) -> Taken:
    source = choice.source
    key = source.key if isinstance(source, ModelRef) else first
    if key in models:
        return Taken(models[key].files, known[key], rows_of(models[key]), key)
    assert isinstance(source, ModelRef)
    folder = source.local_path(recipe.folder)
    where = ".".join(map(str, choice.path))
    if not folder.is_dir():
        names = ["union", "base", *(model.label for model in models.values())]
        raise PlanError(
            Problem(
                f"'{source}' is no model of this recipe and no local folder",
                where,
                choice.location,
                did_you_mean(str(source), names),
            )
        )
    files = {sidecar.name: sidecar.path for sidecar in find_sidecars(folder)[0]}
    vocabulary = read_vocabulary(files)
    if vocabulary is None:
        raise CheckpointError(Problem(f"'{source}' has no tokenizer", where, choice.location))
    return Taken(files, vocabulary, None, None)


# --- rows ---------------------------------------------------------------------------------------


def rows_of(model: Model) -> int | None:
    """Return the number of rows of a model's embeddings, None where it has none.

    Raises:
        PlanError: the config says another number.
    """
    stated = next(_vocabulary_sizes(model.config), None)
    found = {
        tensor.shape[0]: name
        for name, tensor in model.tensors.items()
        if _EMBEDDING.search(name) and len(tensor.shape) == 2
    }
    if not found or stated in found:
        return stated
    rows, name = next(iter(found.items()))
    if stated is None:
        return rows
    raise PlanError(
        Problem(
            f"{name} has {rows} rows, but config.json says vocab_size {stated}",
            where=model.label,
            hint="such a model cannot be given another tokenizer yet; leave 'tokenizer' out",
        )
    )


def _sections(config: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it, the outer ones first."""
    waiting = [config] if config is not None else []
    while waiting:
        section = waiting.pop(0)
        yield section
        waiting.extend(value for value in section.values() if isinstance(value, dict))


def _vocabulary_sizes(config: Mapping[str, Any] | None) -> Iterator[int]:
    for section in _sections(config):
        if isinstance(section.get("vocab_size"), int):
            yield section["vocab_size"]


def other_sizes(config: Mapping[str, Any] | None) -> frozenset[int]:
    """Return every whole number of a config that may be a size of something else than tokens."""
    return frozenset(
        number
        for section in _sections(config)
        for key, value in section.items()
        if not _NOT_SIZES.search(key)
        for number in (value if isinstance(value, list) else [value])
        if isinstance(number, int)
    )


def has_row_a_token(
    name: str, source: Source, rows: int | None, others: frozenset[int], *, in_layer: bool
) -> bool:
    """Tell whether a tensor has one row, or one element, for each row of the embedding.

    Known names count, and others outside the layers where no other size of the model is the same.

    Args:
        name: Its name.
        source: The tensor.
        rows: Of the model's embedding.
        others: The model's other sizes.
        in_layer: Whether it belongs to a layer.
    """
    shape = source.shape
    if rows is None or not shape or not source.dtype.is_float:
        return False
    if name.endswith(_BIAS_ROW):
        return shape == (1, rows)
    if shape[0] != rows:
        return False
    by_name = _EMBEDDING.search(name) or _HEAD.search(name)
    return bool(by_name) or not (in_layer or rows in others)


def other_tables(models: Iterable[Model]) -> Iterator[tuple[Model, str]]:
    """Yield tables over tokens that have rows of their own number, which nobody can align."""
    for model in models:
        for name in model.tensors:
            if name.endswith(_OTHER_TABLE):
                yield model, name
