"""Which tokens has the output, which row of which model belongs to each, and how are rows filled
that a model lacks?

Plain functions of vocabularies and numbers of rows; nothing here reads files or knows tensors.
Every choice is made in the order of the recipe's models and of their ids, so that it is the same
in every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeconf.checkpoint.vocabulary import AddedToken, Numbering, Vocabulary
from mergeconf.errors import PlanError, Problem, listed

RowArray = npt.NDArray[np.int32]
ABSENT = -1
"""In a row map: the model has no such row."""
MEAN = -2
"""In `Fill.donors`: the mean of the models that have the row."""
ZERO = -3
"""In `Fill.donors`: zeros."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one model that have an embedding."""

    label: str
    ids: Mapping[str, int]
    rows: int
    """Rows of its embedding; all ids are below it."""

    @classmethod
    def of(cls, label: str, vocabulary: Vocabulary, rows: int | None) -> Tokens:
        """Return those tokens of a vocabulary that have an embedding."""
        rows = vocabulary.end if rows is None else rows
        ids = vocabulary.tokens
        if vocabulary.end > rows:
            ids = {token: number for token, number in ids.items() if number < rows}
        return cls(label, ids, rows)


@dataclass(frozen=True, slots=True)
class OutputVocabulary:
    """The tokens of the output."""

    ids: Mapping[str, int]
    """Token → id, which is its row."""
    end: int
    """The id after the last one."""
    rows: int
    """Rows of the output's embeddings: `end`, or more to be a multiple of something."""
    added: Mapping[str, AddedToken]
    """Tokens to add to the tokenizer that is taken, in the order of their ids."""
    removed: tuple[str, ...]
    """Tokens of the tokenizer that is taken that have no embedding, in the order of their ids."""


def output_vocabulary(
    taken: Vocabulary,
    rows: int | None,
    others: Sequence[tuple[Vocabulary, Tokens]],
    extra: Sequence[str],
    multiple: int | None,
) -> OutputVocabulary:
    """Return the tokens of the output.

    Args:
        taken: The vocabulary of the tokenizer that is taken; its tokens keep their ids.
        rows: Rows of the embedding that it belongs to, None where that is not known.
        others: Further vocabularies whose tokens the output is to have.
        extra: Further tokens.
        multiple: What the number of rows has to be a multiple of.

    Raises:
        PlanError: a token cannot be given an id.
    """
    kept = Tokens.of("", taken, rows)
    removed = tuple(token for token in taken.tokens if token not in kept.ids)
    ids = dict(kept.ids)
    size = len(taken.listed.tokens) - sum(token in taken.listed.tokens for token in removed)
    last = max((ids[token] for token in taken.added if token in ids), default=-1)
    numbering = Numbering(ids, size, last)
    added: dict[str, AddedToken] = {}
    known = {token for token in taken.added if token in ids}
    special = _added_of(others)
    for _, tokens in others:
        for token in tokens.ids:
            if token not in special and token not in known:
                _add(numbering, added, AddedToken(token))
    for token, info in special.items():
        if token not in known:
            _add(numbering, added, info)
    for token in extra:
        _add(numbering, added, AddedToken(token))
    if len(set(ids.values())) < len(ids):
        raise PlanError(
            Problem(
                "ids of the tokenizer have gaps, so that new tokens would take ids that are in use",
                where="tokenizer",
            )
        )
    end = max(ids.values(), default=-1) + 1
    padded = end if multiple is None else -(-end // multiple) * multiple
    return OutputVocabulary(ids, end, padded, added, removed)


def _added_of(others: Sequence[tuple[Vocabulary, Tokens]]) -> dict[str, AddedToken]:
    """Return what is an added token in any model, as the first one has it."""
    found: dict[str, AddedToken] = {}
    for vocabulary, tokens in others:
        for token, info in vocabulary.added.items():
            if token in tokens.ids:
                found.setdefault(token, info)
    return found


def _add(numbering: Numbering, added: dict[str, AddedToken], token: AddedToken) -> None:
    """Add a token; one that the tokenizer splits text into becomes an added one, as in
    mergekit, where it is an added one of another model."""
    if token.content in numbering.tokens and token == AddedToken(token.content):
        return
    numbering.add(token.content)
    added[token.content] = token


def row_map(output: OutputVocabulary, tokens: Tokens) -> RowArray:
    """Return for each id of the output the row of a model that has the token, or `ABSENT`.

    An id that is no token in the output is no token's row in a model either, where that model has
    no token of this id.
    """
    found = np.full(output.end, ABSENT, np.int32)
    known = tokens.ids
    for token, number in output.ids.items():
        found[number] = known.get(token, ABSENT)
    if len(output.ids) < output.end:
        used = np.zeros(max(output.end, tokens.rows), bool)
        used[list(output.ids.values())] = True
        used[list(known.values())] = True
        used[tokens.rows :] = True
        free = np.flatnonzero(~used[: output.end])
        found[free] = free
    return found


# --- rows that a model lacks ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """What the recipe says of one token."""

    token: str
    model: int | None
    """Position of the model that the embedding comes from; None for zeros."""
    row: int | None
    """Row of that model; None for that of the token itself."""
    force: bool
    """Whether models that have the token take it too."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Where each row comes from in models that lack it."""

    donors: RowArray
    """For each id: position of the model that gives the row, `MEAN` or `ZERO`."""
    rows: RowArray
    """For each id: the row of that model."""
    forced: npt.NDArray[Any]
    """For each id: whether models that have the row take it too."""


def fill(
    maps: Sequence[RowArray],
    base: int | None,
    output: OutputVocabulary,
    wishes: Sequence[Wish],
) -> Fill:
    """Return where rows come from that some model lacks.

    As mergekit decides: what the recipe says of the token; the only model that has it; the base;
    the mean of all that have it; zeros where none has.

    Args:
        maps: Of the models that a tensor is merged from.
        base: Position of the base among them.
        output: The output's tokens.
        wishes: What the recipe says of tokens.
    """
    having = np.stack([each >= 0 for each in maps])
    count = having.sum(axis=0)
    donors = np.full(output.end, MEAN, np.int32)
    if base is not None:
        donors[having[base]] = base
    only = count == 1
    donors[only] = having[:, only].argmax(axis=0)
    donors[count == 0] = ZERO
    rows = np.full(output.end, ABSENT, np.int32)
    for position, each in enumerate(maps):
        mine = donors == position
        rows[mine] = each[mine]
    forced = np.zeros(output.end, bool)
    for wish in wishes:
        number = output.ids[wish.token]
        forced[number] = wish.force
        donors[number] = ZERO if wish.model is None else wish.model
        if wish.model is not None:
            rows[number] = maps[wish.model][number] if wish.row is None else wish.row
    return Fill(donors, rows, forced)


def describe_tokens(tokens: Sequence[str]) -> str:
    """Return tokens as messages show them."""
    return listed([repr(token) for token in tokens], most=5)


def is_own_order(rows: RowArray, count: int) -> bool:
    """Tell whether a row map names all of `count` rows in their order."""
    return len(rows) == count and bool((rows == np.arange(count)).all())
