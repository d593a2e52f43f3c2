"""Which tensors does a safetensors file hold, and where do their bytes lie? Reads no weights.

The reader is ours because the library gives no byte offsets. It is as strict as the library
(version 0.8), and in these places stricter, each because guessing would be worse than refusing:

- a name that occurs twice (the library takes the last): which one was meant is unknown;
- a field beside `dtype`, `shape` and `data_offsets`, or an entry written as a list: it may change
  what the bytes mean;
- a number format outside `DType`, such as 4-bit floats: nothing here could copy or compute it;
- more than 64 dimensions, or dimensions whose product without zeros passes 2^63 - 1: no array of
  torch or numpy can have them;
- a header that is right but whose file is no regular file.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError, Problem
from mergeconf.units import format_size

MAX_HEADER_BYTES = 100_000_000
"""Longest header that is read, in bytes; the library's own limit."""
MAX_DIMENSIONS = 64
"""Most dimensions of a tensor, as in torch and numpy."""

_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells whether a file is still the one that was looked at."""

    path: Path
    """The file, as it was opened."""
    size: int
    """Length in bytes."""
    mtime_ns: int
    """Time of the last change, in nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: what it is and where its bytes lie."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Where its first byte lies, in bytes from the start of the file."""
    nbytes: int
    """Length in bytes."""
    stamp: FileStamp | None = field(default=None, compare=False, repr=False)
    """The file when its header was read; a reader refuses a file that is another by then."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says."""

    tensors: dict[str, StoredTensor]
    """Tensors by name, in the order of their bytes in the file."""
    metadata: dict[str, str]
    """The free text that the file carries, such as `{"format": "pt"}`."""
    stamp: FileStamp
    """The file when this was read."""
    warnings: tuple[Problem, ...] = ()
    """What was found in the file and does not stand in the way."""


def read_header(path: Path) -> Header:
    """Return what a safetensors file holds, having checked that it is whole and sound.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or is no sound safetensors file.
    """
    with open_stamped(path) as (descriptor, stamp):
        text = _read_header_text(descriptor, stamp)
    return _parse(text, stamp)


@contextmanager
def open_stamped(path: Path) -> Iterator[tuple[int, FileStamp]]:
    """Open a file of weights for reading: its descriptor, and what it is by now.

    Raises:
        CheckpointError: the file cannot be read, or is no regular file.
    """
    try:
        try:
            # a pipe would block without O_NONBLOCK; on regular files the flag means nothing
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ValueError as error:  # a path with a NUL character
            _refuse(path, f"cannot be read: {error}")
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, "is not a regular file")
            yield descriptor, FileStamp(path, status.st_size, status.st_mtime_ns)
        finally:
            os.close(descriptor)
    except OSError as error:
        _refuse(path, f"cannot be read: {(error.strerror or str(error)).lower()}")


def _refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    raise CheckpointError(Problem(message, where=str(path), hint=hint)) from None


# --- bytes ------------------------------------------------------------------------------------

_TRUNCATED = "an interrupted download is the likely cause; download the file again"
FOREIGN = (
    (b"GGUF", "it is a GGUF file"),
    (b"PK\x03\x04", "it is a zip archive, perhaps weights that torch.save wrote"),
    (b"\x80", "it is a Python pickle, perhaps weights that torch.save wrote"),
    (b"\x89HDF", "it is an HDF5 file"),
    (b"<", "it is a web page; the download went wrong"),
    (b"{", "it is a JSON file"),
)


def _read_header_text(descriptor: int, stamp: FileStamp) -> bytes:
    path, size = stamp.path, stamp.size
    start = _pread(descriptor, min(size, 64), 0)
    if start.startswith(b"version https://git-lfs"):
        _refuse(
            path,
            "is a git-lfs pointer, not the weights",
            "run git lfs pull in its folder",
        )
    if len(start) < 8:
        _refuse(path, f"has {size} bytes; a safetensors file has at least 8", _TRUNCATED)
    (length,) = struct.unpack_from("<Q", start)
    if length > MAX_HEADER_BYTES:
        hint = next((hint for magic, hint in FOREIGN if start.startswith(magic)), "")
        _refuse(
            path,
            f"is no safetensors file: a header of {length} bytes is over the limit of "
            f"{format_size(MAX_HEADER_BYTES)}",
            hint,
        )
    if 8 + length > size:
        missing = 8 + length - size
        _refuse(
            path,
            f"is truncated: at least {missing} bytes are missing "
            f"(its header ends at byte {8 + length}, the file at byte {size})",
            _TRUNCATED,
        )
    text = _pread(descriptor, length, 8)
    if len(text) < length:
        _refuse(path, f"is truncated: {length - len(text)} bytes of its header are missing")
    return text


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


# --- meaning ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Duplicate:
    """Stands for a JSON object in which a name occurs twice."""

    name: str


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object] | _Duplicate:
    entries = dict(pairs)
    if len(entries) == len(pairs):
        return entries
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return _Duplicate(name)
        seen.add(name)
    raise AssertionError("unreachable")


def _integer(text: str) -> int | float:
    # a float where a whole number must stand is refused later; Python's own int() would raise
    # beyond 4,300 digits, and take -0 for 0
    return int(text) if len(text) <= 20 and text != "-0" else float(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse(text: bytes, stamp: FileStamp) -> Header:
    path = stamp.path
    try:
        root = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError:
        _refuse(path, "has a damaged header: it is not UTF-8 text")
    except RecursionError:
        _refuse(path, "has a damaged header: its JSON is nested too deeply")
    except MemoryError:
        _refuse(path, "has a header that does not fit into memory")
    except ValueError as error:
        _refuse(path, f"has a damaged header: {error}")
    if isinstance(root, _Duplicate):
        _refuse(path, f"has a damaged header: the name {root.name!r} occurs twice")
    if not isinstance(root, dict):
        _refuse(path, "has a damaged header: it is not a JSON object")
    metadata = _metadata(root.pop("__metadata__", None), path)
    base = 8 + len(text)
    tensors = [_tensor(name, entry, base, stamp) for name, entry in root.items()]
    tensors.sort(key=_span)
    _check_cover(tensors, base, stamp)
    return Header({tensor.name: tensor for tensor in tensors}, metadata, stamp)


def _span(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes


def _metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, _Duplicate):
        _refuse(path, f"has a damaged header: __metadata__ holds {value.name!r} twice")
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(path, "has a damaged header: __metadata__ must map names to texts")
    if not all(map(_is_text, value)) or not all(map(_is_text, value.values())):
        _refuse(path, "has a damaged header: __metadata__ holds half a surrogate pair")
    return value


def _is_text(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON can spell half a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(name: str, entry: object, base: int, stamp: FileStamp) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS or not _is_text(name):
        _refuse(stamp.path, f"tensor {name!r}: {_wrong_fields(entry)}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DType.from_code(code) if isinstance(code, str) else None
    if dtype is None:
        valid = ", ".join(known.code for known in DType)
        _refuse(
            stamp.path,
            f"tensor {name!r}: dtype {_short(code)} is none that mergeconf reads",
            f"it reads {valid}",
        )
    if not _are_whole(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(
            stamp.path,
            f"tensor {name!r}: shape {_short(shape)} is not a list of at most {MAX_DIMENSIONS} "
            "whole numbers from 0 to 2^63 - 1",
        )
    if not _are_whole(offsets) or len(offsets) != 2:
        _refuse(
            stamp.path,
            f"tensor {name!r}: data_offsets {_short(offsets)} are not two whole numbers "
            "from 0 to 2^63 - 1",
        )
    begin, end = offsets
    numel = math.prod(shape)
    if end - begin != numel * dtype.itemsize:
        _refuse(
            stamp.path,
            f"tensor {name!r}: data_offsets {begin} to {end} hold {end - begin} bytes, but "
            f"{dtype.code} of shape {_short(shape)} needs {numel * dtype.itemsize}",
        )
    if not numel and math.prod(filter(None, shape)) > _LARGEST:
        _refuse(stamp.path, f"tensor {name!r}: shape {_short(shape)} is too large")
    return StoredTensor(name, dtype, tuple(shape), stamp.path, base + begin, end - begin, stamp)


def _are_whole(values: object) -> bool:
    """Whether this is a list of whole numbers that fit in 63 bits; a truth value is none."""
    if type(values) is not list:
        return False
    return all(type(value) is int and 0 <= value <= _LARGEST for value in values)


def _wrong_fields(entry: object) -> str:
    if isinstance(entry, _Duplicate):
        return f"field {entry.name!r} occurs twice"
    if not isinstance(entry, Mapping):
        return "its entry is not an object with dtype, shape and data_offsets"
    if missing := sorted(_FIELDS - entry.keys()):
        return f"{', '.join(missing)} missing"
    if unknown := sorted(entry.keys() - _FIELDS):
        return f"unknown field {unknown[0]!r}; its meaning for the bytes is not known"
    return "its name holds half a surrogate pair"


def _short(value: object) -> str:
    if isinstance(value, _Duplicate):
        return "(an object)"
    if isinstance(value, (list, dict)) and len(value) > MAX_DIMENSIONS:
        return f"({len(value)} entries)"
    try:
        text = repr(value)
    except RecursionError:
        return "(a deep structure)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_cover(tensors: list[StoredTensor], base: int, stamp: FileStamp) -> None:
    """Check that tensors, in the order of their offsets, cover the data without gap or overlap."""
    position, before = base, ""
    for tensor in tensors:
        if tensor.offset != position:
            gap = tensor.offset - position
            fact = (
                f"leaves a hole of {gap} bytes before it"
                if gap > 0
                else f"overlaps tensor {before!r} by {-gap} bytes"
            )
            _refuse(stamp.path, f"tensor {tensor.name!r}: at byte {tensor.offset} it {fact}")
        position, before = tensor.offset + tensor.nbytes, tensor.name
    if position > stamp.size:
        cut = next(tensor for tensor in tensors if tensor.offset + tensor.nbytes > stamp.size)
        _refuse(
            stamp.path,
            f"is truncated: {position - stamp.size} bytes are missing, from tensor {cut.name!r} "
            f"on (the file has {stamp.size} bytes, its header promises {position})",
            _TRUNCATED,
        )
    if position < stamp.size:
        _refuse(
            stamp.path,
            f"has {stamp.size - position} bytes after its last tensor "
            f"(the file has {stamp.size} bytes, its header promises {position})",
            "the header and the data are not of one file; download it again",
        )
