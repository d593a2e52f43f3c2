"""Which tokens do a tokenizer's files list, before anything is added to them?

Reads tokenizer.json (BPE, WordPiece, WordLevel, Unigram), sentencepiece models, tiktoken files,
vocab.json and vocab.txt, with nothing but the standard library. Knows nothing of embeddings.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mergeconf.errors import CheckpointError, Problem

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
"""Names of sentencepiece models; the first may also be a tiktoken file."""
_OFFSETS = (
    "camembert", "xlmroberta", "mbart", "nllb", "barthez", "xglm", "t5", "pegasus", "m2m100",
    "marian", "xlnet", "bigbirdpegasus",
)  # fmt: skip
"""Classes of tokenizers whose ids are not those of their sentencepiece model."""
_text = json.JSONEncoder(ensure_ascii=False).encode
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
"""Start of the merges; inside a text the quotation marks would be escaped."""
_RESAVE = "open it once with transformers' AutoTokenizer and save_pretrained, which writes one"


Files = Mapping[str, bytes | Path]
"""A model's small files by name: content, or where they lie."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The tokens that a file lists."""

    name: str
    """The file's name."""
    tokens: dict[str, int]
    """Token → id."""
    added: tuple[Any, ...] = ()
    """Added tokens that a tokenizer.json lists besides, as written there."""

    @property
    def is_json(self) -> bool:
        """Whether it is a tokenizer.json."""
        return self.name == TOKENIZER_JSON


def find_listed(files: Files, config: Mapping[str, Any]) -> Listed | None:
    """Return the tokens of the file that transformers would read, or None where there is none.

    Args:
        files: Of the model.
        config: Content of tokenizer_config.json.

    Raises:
        CheckpointError: the file is damaged, or of a form that is not understood.
    """
    if TOKENIZER_JSON in files:
        return _tokenizer_json(files)
    for name in _PIECES:
        if name in files:
            return _pieces(files, name, config)
    if (name := "vocab.json") in files:
        return Listed(name, _ids(place_of(files, name), load_object(files, name)))
    if (name := "vocab.txt") in files:
        lines = read_bytes(files, name).decode("utf-8", "replace").split("\n")
        if lines and not lines[-1]:
            lines.pop()
        return Listed(name, {line.rstrip("\r"): index for index, line in enumerate(lines)})
    for name in sorted(name for name in files if name.endswith(".tiktoken")):
        return Listed(name, _tiktoken(place_of(files, name), read_bytes(files, name)))
    if (name := "tekken.json") in files:
        message = "is a form of tokenizer that is not read; needs a tokenizer.json"
        refuse(place_of(files, name), message, _RESAVE)
    return None


def load_object(files: Files, name: str) -> dict[str, Any]:
    """Return the content of a file that holds a JSON object, empty where there is no such file.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    if name not in files:
        return {}
    where = place_of(files, name)
    try:
        content = json.loads(read_bytes(files, name).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        refuse(where, f"is no sound JSON: {error}", "download it again")
    if not isinstance(content, dict):
        refuse(where, "is not a JSON object")
    return content


def written(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as a file's content: an entry a line, down to the second level.

    Indenting throughout takes ten times as long, which counts for files of many tokens.
    """
    lines = [f"  {_text(key)}: {_lines(value)}" for key, value in content.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _lines(value: object) -> str:
    if isinstance(value, dict) and value:
        inside = [f"    {_text(key)}: {_text(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inside) + "\n  }"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return entries(value)
    return _text(value)


def entries(items: Iterable[object]) -> str:
    """Return a JSON list inside an object, an entry a line."""
    return "[\n" + ",\n".join(f"    {_text(item)}" for item in items) + "\n  ]"


def place_of(files: Files, name: str) -> str:
    """Return what messages call a file."""
    source = files[name]
    return name if isinstance(source, bytes) else str(source)


def refuse(where: str, message: str, hint: str = "") -> NoReturn:
    """Raise what stands in the way of reading a file."""
    raise CheckpointError(Problem(message, where=where, hint=hint)) from None


def read_bytes(files: Files, name: str) -> bytes:
    """Return a file's content.

    Raises:
        CheckpointError: it cannot be read.
    """
    source = files[name]
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        refuse(str(source), f"cannot be read: {(error.strerror or str(error)).lower()}")


def _tokenizer_json(files: Files) -> Listed:
    content, where = _without_merges(files), place_of(files, TOKENIZER_JSON)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(added, list):
        refuse(where, "added_tokens is no list")
    if isinstance(vocabulary, dict):
        return Listed(TOKENIZER_JSON, _ids(where, vocabulary), tuple(added))
    if isinstance(vocabulary, list):
        tokens: dict[str, int] = {}
        for index, piece in enumerate(vocabulary):
            if not isinstance(piece, list) or not piece or not isinstance(piece[0], str):
                refuse(where, f"model.vocab: item {index} is no piece with its score")
            tokens[piece[0]] = index
        return Listed(TOKENIZER_JSON, tokens, tuple(added))
    refuse(where, "has no model.vocab that lists its tokens")


def _without_merges(files: Files) -> dict[str, Any]:
    """Return a tokenizer.json without what follows its merges, most of it, and mostly nothing.

    A file that is laid out otherwise is read whole.
    """
    raw = read_bytes(files, TOKENIZER_JSON)
    if found := _MERGES.search(raw):
        try:
            content: dict[str, Any] | None = json.loads(raw[: found.start()] + b'"merges": []}}')
        except (ValueError, RecursionError):
            content = None
        model = content.get("model") if isinstance(content, dict) else None
        if content and isinstance(model, dict) and "vocab" in model and "added_tokens" in content:
            return content
    return load_object(files, TOKENIZER_JSON)


def _ids(where: str, vocabulary: Mapping[str, Any]) -> dict[str, int]:
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            refuse(where, f"token {token!r}: its id is {number!r}, not a whole number")
    return dict(vocabulary)


def _pieces(files: Files, file: str, config: Mapping[str, Any]) -> Listed:
    raw, where = read_bytes(files, file), place_of(files, file)
    try:
        tokens = {piece: index for index, piece in enumerate(sentencepieces(raw))}
    except (ValueError, IndexError):
        tokens = {}
    if not tokens:
        return Listed(file, _tiktoken(where, raw))
    kind = str(config.get("tokenizer_class", ""))
    if kind.lower().startswith(_OFFSETS):
        message = f"{kind} numbers tokens otherwise than this file; needs a tokenizer.json"
        refuse(where, message, _RESAVE)
    return Listed(file, tokens)


# --- sentencepiece: a protocol buffer ---------------------------------------------------------


def sentencepieces(raw: bytes) -> Iterator[str]:
    """Yield the pieces of a sentencepiece model, in the order of their ids.

    Raises:
        ValueError: the bytes are no such model.
        IndexError: they end early.
    """
    for number, value in _fields(raw):
        if number != 1 or not isinstance(value, bytes):
            continue
        piece = next((text for inner, text in _fields(value) if inner == 1), None)
        if not isinstance(piece, bytes):
            raise ValueError("a piece has no text")
        yield piece.decode("utf-8")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of each field of a message."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(raw, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("no protocol buffer")
        if at + length > len(raw):
            raise ValueError("ends early")
        yield key >> 3, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no protocol buffer")


# --- tiktoken: a line a token, in base64, with its rank -------------------------------------------


def _tiktoken(where: str, raw: bytes) -> dict[str, int]:
    letters = _byte_letters()
    tokens: dict[str, int] = {}
    for line in raw.splitlines():
        if not line.strip():
            continue
        try:
            text, number = line.split()
            token = base64.b64decode(text, validate=True)
            tokens["".join(letters[byte] for byte in token)] = int(number)
        except (ValueError, binascii.Error):
            message = "is neither a sentencepiece model nor a tiktoken file"
            refuse(where, message, "download it again")
    if not tokens:
        refuse(where, "lists no tokens", "download it again")
    return tokens


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte.

    Bytes that are visible in Latin-1 stand for themselves; the others get the letters from U+0100
    on, in their order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
