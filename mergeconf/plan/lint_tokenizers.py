"""Do rows of embeddings that are merged stand for the same tokens?

Without a word about tokenizers in the recipe, embeddings and heads are merged row by row. That is
wrong where id 5 is one token in one model and another in the next. Only files that say plainly
which token has which id are looked at: tokenizer.json, vocab.json, vocab.txt, added_tokens.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeconf.errors import Problem, listed
from mergeconf.plan.alignment import EMBEDDINGS, TIED_TO_EMBEDDING
from mergeconf.plan.data import Plan
from mergeconf.plan.lint_models import merged_from

Files = Mapping[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model's ids stand for."""

    by_id: Mapping[int, str]
    complete: bool
    """Whether added tokens are among them for certain."""


_SAYS_HOW = {"tokenizer", "tokenizer_source"}
"""Keys of a recipe that say what becomes of vocabularies."""
_SHOWN = 3


def differing_tokenizers(plan: Plan) -> Iterator[Problem]:
    """Warn where embeddings are merged whose models number tokens differently."""
    if _SAYS_HOW & plan.recipe.locations.keys():
        return
    rows, merged = _merged_rows(plan)
    donor = plan.donor
    expected = _tokens_of(donor.files) if merged else None
    if expected is None:
        return
    for reference, model in zip(plan.recipe.referenced(), plan.models, strict=True):
        if reference.key not in merged or _same_files(model.files, donor.files):
            continue
        tokens = _tokens_of(model.files)
        if tokens is not None and (differing := _differing(tokens, expected, rows)):
            examples = [_example(id_, tokens, expected) for id_ in differing[:_SHOWN]]
            yield Problem(
                f"embeddings are merged row by row, but {len(differing):,} of {rows:,} ids mean "
                f"other tokens than for '{donor.label}', whose tokenizer the output has: "
                f"{listed(examples)}",
                str(reference),
                reference.location,
                "'tokenizer_source' says how tokens are brought together",
                "warning",
                "tokenizers-differ",
            )


def _merged_rows(plan: Plan) -> tuple[int, set[str]]:
    """Return the rows of the embeddings and heads that are merged, and the keys of the models."""
    rows = 0
    merged: set[str] = set()
    for tensor in plan.tensors:
        models = merged_from(tensor)
        if len(models) > 1 and tensor.name.endswith((*EMBEDDINGS, *TIED_TO_EMBEDDING)):
            rows = max(rows, tensor.shape[0] if tensor.shape else 0)
            merged.update(model.key for model in models)
    return rows, merged


def _differing(one: Tokens, other: Tokens, rows: int) -> list[int]:
    ids = one.by_id.keys() | other.by_id.keys()
    if not (one.complete and other.complete):
        ids = one.by_id.keys() & other.by_id.keys()
    return sorted(i for i in ids if i < rows and one.by_id.get(i) != other.by_id.get(i))


def _example(id_: int, tokens: Tokens, expected: Tokens) -> str:
    ours, theirs = (
        repr(vocabulary.by_id[id_]) if id_ in vocabulary.by_id else "none"
        for vocabulary in (tokens, expected)
    )
    return f"{id_} is {ours}, not {theirs}"


# --- files ------------------------------------------------------------------------------------

_TOKENIZER, _VOCAB_JSON, _VOCAB_TXT = "tokenizer.json", "vocab.json", "vocab.txt"
_ADDED = "added_tokens.json"


def _same_files(one: Files, other: Files) -> bool:
    """Tell whether the files that number tokens are the same byte for byte."""
    names = (_TOKENIZER,) if _TOKENIZER in one else (_VOCAB_JSON, _VOCAB_TXT, _ADDED)
    return all(one.get(name) == other.get(name) or _same(one, other, name) for name in names)


def _same(one: Files, other: Files, name: str) -> bool:
    content = _content(one, name)
    return content == _content(other, name)


def _content(files: Files, name: str) -> bytes | None:
    file = files.get(name)
    try:
        return file.read_bytes() if isinstance(file, Path) else file
    except OSError:
        return None


def _tokens_of(files: Files) -> Tokens | None:
    """Return the token of each id, or None where no file tells it plainly."""
    tokens = _from_tokenizer(_json(files, _TOKENIZER))
    if tokens is not None:
        return Tokens(tokens, complete=True)
    numbered = _json(files, _VOCAB_JSON)
    lines = _content(files, _VOCAB_TXT)
    if isinstance(numbered, dict):
        tokens = _by_id(numbered)
    elif lines is not None:
        tokens = dict(enumerate(lines.decode("utf-8", "replace").splitlines()))
    added = _json(files, _ADDED)
    if tokens is not None and isinstance(added, dict):
        tokens |= _by_id(added)
    return None if tokens is None else Tokens(tokens, complete=False)


def _from_tokenizer(content: object) -> dict[int, str] | None:
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        tokens = _by_id(vocabulary)
    elif isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        pairs = enumerate(vocabulary)
        tokens = {id_: str(pair[0]) for id_, pair in pairs if isinstance(pair, list) and pair}
    else:
        return None
    assert isinstance(content, dict)
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            tokens[entry["id"]] = str(entry.get("content"))
    return tokens


def _by_id(numbered: Mapping[str, object]) -> dict[int, str]:
    return {id_: token for token, id_ in numbered.items() if isinstance(id_, int)}


def _json(files: Files, name: str) -> object:
    content = _content(files, name)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError):  # whoever needs it will say so
        return None
