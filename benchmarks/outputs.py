"""Is an output folder really the merged checkpoint? So that no failed run is timed as a fast one.

Reads safetensors headers and a few kilobytes of each tensor, with the standard library alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SAMPLE_BYTES = 4096
"""Bytes read from the middle of a tensor to see that it was written."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors header describes it."""

    dtype: str
    """The header's name of the dtype, as BF16."""
    shape: tuple[int, ...]
    """Its dimensions."""
    size: int
    """Bytes of its data."""
    file: Path
    """The file it lies in."""
    offset: int
    """Where its data starts in that file, in bytes."""


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's safetensors files in the order of their names."""
    return sorted(folder.glob("*.safetensors"))


def read_header(path: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return a file's tensors and what is wrong with its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {
        name: StoredTensor(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
            file=path,
            offset=start + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=start)
    size = path.stat().st_size
    return tensors, [] if size == end else [f"{path.name}: {size} bytes, expected {end}"]


def read_headers(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the tensors of all files of a checkpoint and what is wrong with the files."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for path in weight_files(folder):
        found, wrong = read_header(path)
        problems += wrong
        problems += [f"{name}: in more than one file" for name in found.keys() & tensors.keys()]
        tensors |= found
    return tensors, problems


def is_blank(tensor: StoredTensor) -> bool:
    """Tell whether the tensor's middle is all zero bytes, as in a file sized but not written."""
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset + max(0, tensor.size - SAMPLE_BYTES) // 2)
        piece = file.read(min(tensor.size, SAMPLE_BYTES))
    return bool(piece) and not any(piece)


def output_problems(folder: Path, reference: Path) -> list[str]:
    """Return what is missing or wrong in `folder` beside the checkpoint `reference`."""
    try:
        found, problems = read_headers(folder)
        expected, _ = read_headers(reference)
    except (OSError, ValueError, KeyError) as error:
        return [f"{type(error).__name__}: {error}"]
    if not (folder / "config.json").is_file():
        problems.append("config.json: not there")
    for name, tensor in expected.items():
        other = found.get(name)
        if other is None:
            problems.append(f"{name}: not there")
        elif (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            problems.append(
                f"{name}: {other.dtype} {other.shape}, expected {tensor.dtype} {tensor.shape}"
            )
        elif is_blank(other):
            problems.append(f"{name}: all zero")
    problems += [f"{name}: not expected" for name in found.keys() - expected.keys()]
    return problems
