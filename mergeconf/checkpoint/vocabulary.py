"""Which tokens does a model know, and under which ids?

Numbered as transformers' AutoTokenizer numbers them: first what the tokenizer's file lists, then
added tokens, then special tokens that are only named. Neither transformers nor tokenizers is
imported. Knows nothing of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeconf.checkpoint.vocabulary_files import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    Files,
    Listed,
    find_listed,
    load_object,
    place_of,
    refuse,
)

NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Keys of special tokens in a tokenizer's config."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Keys of lists of further special tokens."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside those that the model splits text into, and how it is found in a text."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return it as tokenizer files hold it, without the id."""
        return {"content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of one model."""

    tokens: Mapping[str, int]
    """Token → id, added ones included, in the order of the ids."""
    added: Mapping[str, AddedToken]
    """Those that are added tokens, in the order of their ids."""
    listed: Listed
    """What the tokenizer's file lists."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of tokenizer_config.json."""

    @property
    def end(self) -> int:
        """The id after the last one."""
        return max(self.tokens.values(), default=-1) + 1


def read_vocabulary(files: Files) -> Vocabulary | None:
    """Return the vocabulary of a model's tokenizer, or None where it has no tokenizer.

    Args:
        files: The model's small files by name.

    Raises:
        CheckpointError: the tokenizer is damaged or not understood.
    """
    config = load_object(files, TOKENIZER_CONFIG)
    listed = find_listed(files, config)
    if listed is None:
        return None
    numbering = Numbering(dict(listed.tokens), len(listed.tokens))
    added: dict[str, AddedToken] = {}
    for item in listed.added:
        token = _added(item, place_of(files, listed.name))
        numbering.add(token.content)
        added[token.content] = token
    for token, number in _further(files, config):
        if token.content not in added:
            numbering.add(token.content, None if listed.is_json else number)
        added[token.content] = token
    for text, written in _special_tokens(files, config):
        if text not in added:
            numbering.add(text)
            added[text] = written
    tokens = dict(sorted(numbering.tokens.items(), key=lambda item: item[1]))
    added = {text: added[text] for text in sorted(added, key=tokens.__getitem__)}
    return Vocabulary(tokens, added, listed, config)


@dataclass(slots=True)
class Numbering:
    """Gives ids to added tokens, in the way of the tokenizers library."""

    tokens: dict[str, int]
    """Token → id; grows."""
    size: int
    """Number of tokens that the tokenizer's model itself has."""
    last: int = -1
    """Largest id of an added token."""

    def add(self, token: str, number: int | None = None) -> int:
        """Return the id of an added token, a new one where it is unknown.

        Args:
            token: Its text.
            number: The id that it asks for, where ids of its kind of file are free.
        """
        known = self.tokens.get(token)
        if known is None:
            known = self.size if self.last < self.size else self.last + 1
            if number is not None:  # takes the place of a token that only keeps it free
                known = number
                for text in [text for text, other in self.tokens.items() if other == number]:
                    del self.tokens[text]
            self.tokens[token] = known
        self.last = max(self.last, known)
        return known


def _added(item: object, where: str) -> AddedToken:
    if isinstance(item, str):
        return AddedToken(item, normalized=False, special=True)
    if not isinstance(item, dict) or not isinstance(item.get("content"), str):
        refuse(where, f"an added token is {item!r}, not an object with its content")
    flags = {flag: bool(item[flag]) for flag in _FLAGS if flag in item}
    flags.setdefault("normalized", not flags.get("special", False))
    return AddedToken(item["content"], **flags)


def _further(files: Files, config: Mapping[str, Any]) -> Iterator[tuple[AddedToken, int]]:
    """Yield the added tokens that lie beside the tokenizer's file, by id."""
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        where = place_of(files, TOKENIZER_CONFIG)
        for key in sorted(decoder, key=lambda key: _number(key, where)):
            yield _added(decoder[key], where), _number(key, where)
        return
    content = load_object(files, ADDED_TOKENS)
    special = {text for text, _ in _special_tokens(files, config)} if content else set()
    for text in sorted(content, key=lambda text: _number(content[text], ADDED_TOKENS)):
        is_special = text in special
        token = AddedToken(text, normalized=not is_special, special=is_special)
        yield token, _number(content[text], ADDED_TOKENS)


def _number(value: object, where: str) -> int:
    try:
        return int(value)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        refuse(where, f"the id of an added token is {value!r}, not a whole number")


def _special_tokens(files: Files, config: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Yield the tokens that a config names as special, which are added where they are new."""
    named = dict(config)
    if "added_tokens_decoder" not in config:  # transformers reads it in this case only
        named.update(load_object(files, SPECIAL_TOKENS))
    for key in NAMED:
        if named.get(key):
            yield from _special(named[key])
    for key in named:
        if key.endswith("_token") and key not in NAMED and isinstance(named[key], (str, dict)):
            yield from _special(named[key])
    for key in LISTS:
        items = named.get(key)
        for item in items.values() if isinstance(items, dict) else items or ():
            yield from _special(item)


def _special(item: object) -> Iterator[tuple[str, AddedToken]]:
    if isinstance(item, dict) and isinstance(item.get("content"), str):
        flags = {flag: bool(item[flag]) for flag in _FLAGS if flag in item}
        yield item["content"], AddedToken(item["content"], **{**flags, "special": True})
    elif isinstance(item, str) and item:
        yield item, AddedToken(item, normalized=False, special=True)
