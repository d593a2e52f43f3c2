"""Which elements of which tensors are looked at, and what are they?

The same ones each time: tensors spread evenly over the model, and of each a few pieces spread
evenly over it. Every model gives the same elements of a tensor, whatever format it is stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mergeconf.checkpoint import ReadFiles, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.execution.kernels import bfloat16_to_float32, float32_to_bfloat16

Array = npt.NDArray[Any]
_T = TypeVar("_T")

MOST_TENSORS = 200
"""Tensors looked at in each model."""
MOST_ELEMENTS = 1 << 14
"""Elements looked at in each tensor: 64 KiB of float32."""
PIECES = 8
"""Places in a tensor that these are read from."""

READABLE = (DType.bfloat16, DType.float16, DType.float32, DType.float64)
"""Formats that are looked at."""


def spread(items: Sequence[_T], most: int = MOST_TENSORS) -> list[_T]:
    """Return at most so many items, spread evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def pieces_of(numel: int) -> list[tuple[int, int]]:
    """Return the pieces of a tensor that are read: first element and how many."""
    if numel <= MOST_ELEMENTS:
        return [(0, numel)] if numel else []
    length = MOST_ELEMENTS // PIECES
    return [(piece * (numel - length) // (PIECES - 1), length) for piece in range(PIECES)]


def read_sample(reads: ReadFiles, tensor: StoredTensor) -> Array:
    """Return the values of a tensor's sample: float64 where it is stored so, else float32.

    Raises:
        CheckpointError: the file cannot be read.
    """
    pieces = pieces_of(tensor.numel)
    stored = np.empty(sum(length for _, length in pieces), tensor.dtype.numpy)
    done = 0
    for first, length in pieces:
        part = stored[done : done + length]
        read_elements(reads, tensor, first, part)
        done += length
    return values_of(stored, tensor.dtype)


def read_elements(reads: ReadFiles, tensor: StoredTensor, first: int, out: Array) -> None:
    """Fill an array with stored elements, from a given one on."""
    size = tensor.dtype.itemsize
    reads.read_into(tensor, first * size, out.view(np.uint8).data)


def values_of(stored: Array, dtype: DType) -> Array:
    """Return stored bits as numbers: float64 as they are, all others as float32."""
    match dtype:
        case DType.bfloat16:
            bits = np.empty(stored.shape, np.uint32)
            bfloat16_to_float32(stored, bits)
            return bits.view(np.float32)
        case DType.float16:
            return stored.view(np.float16).astype(np.float32)
        case _:
            return stored


def rounded(values: Array, dtype: DType) -> Array:
    """Return finite numbers as a format holds them, as float64."""
    with np.errstate(over="ignore"):  # a run refuses what a format cannot hold
        single = values.astype(np.float32)
        match dtype:
            case DType.bfloat16:
                bits = single.view(np.uint32)
                out = np.empty(bits.shape, np.uint16)
                float32_to_bfloat16(bits, np.empty_like(bits), out)
                return values_of(out, dtype).astype(np.float64)
            case DType.float16:
                return single.astype(np.float16).astype(np.float64)
            case DType.float32:
                return single.astype(np.float64)
            case _:
                return values.astype(np.float64)
