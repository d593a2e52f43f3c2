"""Where does each output tensor lie, in which file, under which header? Pure: opens no file.

Tensors are taken in natural order of their names (layer 2 before layer 10), so that the files do
not depend on the order in which the inputs happened to hold them, and a shard holds neighboring
layers. Inside a file, larger items come first and otherwise the order stays: the data starts at a
multiple of 8 bytes, so every tensor is aligned to its item size, as the safetensors library
arranges it too; and a run that works in this order writes each file from front to back.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mergeconf.dtypes import DType
from mergeconf.errors import OutputError, Problem
from mergeconf.storage.safetensors_in import MAX_HEADER_BYTES
from mergeconf.units import format_size

ALIGNMENT = 8
"""The data of a file starts at a multiple of this, in bytes: the largest item size."""
STEM = "model"
"""How the files' names start, for transformers."""
DIFFUSION_STEM = "diffusion_pytorch_model"
"""How they start for diffusers."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """Where an output tensor lies."""

    tensor: OutputTensor
    file: int
    """Index of its file in `Layout.files`."""
    offset: int
    """Where its first byte lies, in bytes from the start of the file."""
    nbytes: int
    """Length in bytes."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One safetensors file of the output."""

    name: str
    header: bytes
    """All bytes before the data: length, JSON, padding."""
    size: int
    """Length of the whole file in bytes."""
    tensors: tuple[str, ...]
    """Names of its tensors, in the order of their bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All files of an output's weights, and where each tensor lies in them."""

    files: tuple[OutputFile, ...]
    tensors: Mapping[str, PlacedTensor]
    """By name, in the order in which to write them: file after file, front to back."""
    index_name: str | None
    """Name of the index file, or None where there is one weight file only."""
    index: bytes
    """Content of the index file; empty where there is none."""

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(placed.nbytes for placed in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, index included."""
        return sum(file.size for file in self.files) + len(self.index)


def plan_layout(
    tensors: Sequence[OutputTensor],
    shard_size: int,
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
    stem: str = STEM,
) -> Layout:
    """Return where each tensor is written.

    Args:
        tensors: what is to be written, in any order; the result does not depend on it.
        shard_size: most bytes of tensors in one file; a larger tensor has a file of its own.
        metadata: text that each file carries; transformers asks for a `format`.
        stem: how the files' names start; diffusers looks for `diffusion_pytorch_model`.

    Raises:
        OutputError: two tensors have one name, or a name that no file can hold.
    """
    _check_names(tensors)
    ordered = sorted(tensors, key=lambda tensor: (natural_key(tensor.name), tensor.name))
    shards = _split(ordered, shard_size)
    files = [
        _plan_file(shard, number, len(shards), metadata, stem)
        for number, shard in enumerate(shards)
    ]
    placed = {place.tensor.name: place for _, places in files for place in places}
    index_name, index = None, b""
    if len(shards) > 1:
        index_name = f"{stem}.safetensors.index.json"
        index = _index([file for file, _ in files], placed.values())
    return Layout(tuple(file for file, _ in files), placed, index_name, index)


def natural_key(name: str) -> tuple[str | tuple[int, str], ...]:
    """Return a key that sorts numbers in names by their value: layer 2 before layer 10."""
    parts: list[str | tuple[int, str]] = []
    for index, part in enumerate(_DIGITS.split(name)):
        digits = part.lstrip("0") if index % 2 else ""
        # compared as length and text: a name may hold more digits than int() takes
        parts.append((len(digits), digits) if index % 2 else part)
    return tuple(parts)


_DIGITS = re.compile("([0-9]+)")


def _check_names(tensors: Sequence[OutputTensor]) -> None:
    problems, seen = [], set()
    for tensor in tensors:
        if tensor.name in seen:
            problems.append(Problem("is to be written twice", where=tensor.name))
        seen.add(tensor.name)
        try:
            tensor.name.encode()
        except UnicodeEncodeError:
            problems.append(Problem("is a name that is no text", where=ascii(tensor.name)))
        if tensor.name == "__metadata__":
            problems.append(
                Problem(
                    "is a name that safetensors files keep for themselves",
                    where=tensor.name,
                )
            )
    if problems:
        raise OutputError(problems)


def _split(tensors: Iterable[OutputTensor], shard_size: int) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    room = shard_size
    for tensor in tensors:
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_size
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def _plan_file(
    shard: Sequence[OutputTensor], number: int, count: int, metadata: Mapping[str, str], stem: str
) -> tuple[OutputFile, list[PlacedTensor]]:
    name = f"{stem}.safetensors"
    if count > 1:
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
    ordered = sorted(shard, key=lambda tensor: -tensor.dtype.itemsize)
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    begin = 0
    for tensor in ordered:
        end = begin + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype.code,
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
        begin = end
    header = _header(entries)
    if len(header) - 8 > MAX_HEADER_BYTES:
        raise OutputError(
            Problem(
                f"would have a header over {format_size(MAX_HEADER_BYTES)}, which no reader takes",
                where=name,
                hint="choose a smaller shard size",
            )
        )
    places, offset = [], len(header)
    for tensor in ordered:
        places.append(PlacedTensor(tensor, number, offset, tensor.nbytes))
        offset += tensor.nbytes
    names = tuple(tensor.name for tensor in ordered)
    return OutputFile(name, header, offset, names), places


def _header(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _index(files: Sequence[OutputFile], places: Iterable[PlacedTensor]) -> bytes:
    """Return the index as transformers writes it, keys sorted."""
    content = {
        "metadata": {"total_size": sum(place.nbytes for place in places)},
        "weight_map": {name: file.name for file in files for name in file.tensors},
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
