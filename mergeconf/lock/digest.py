"""What identifies bytes? Digests of tensors, of texts and of whole models.

BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs) with 256 bits, written `blake3:` and 64 hexadecimal
digits. A tensor's digest depends on its format, its shape and its bytes, not on its name, nor on
the file it lies in; that of a model on its tensors' names and digests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from blake3 import blake3

from mergeconf.dtypes import DType
from mergeconf.storage.safetensors_in import StoredTensor

PREFIX = "blake3:"
PIECE = 1 << 18
"""Bytes that are read and hashed at a time: they stay in the cache in between."""

ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with a tensor's bytes from an offset."""


class TensorDigest:
    """The digest of one tensor, fed with its bytes from front to back."""

    def __init__(self, dtype: DType, shape: tuple[int, ...]) -> None:
        self._hash = blake3()
        self._hash.update(f"mergeconf tensor {dtype.name} {list(shape)}\n".encode())

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)

    def text(self) -> str:
        """Return the digest."""
        return PREFIX + self._hash.hexdigest()


def digest_tensor(
    dtype: DType, shape: tuple[int, ...], nbytes: int, read_into: ReadInto, buffer: memoryview
) -> str:
    """Return the digest of a tensor that is read piece by piece.

    Args:
        dtype: Its format.
        shape: Its shape.
        nbytes: Its length in bytes.
        read_into: Reads it.
        buffer: Memory to read into, as long as a piece.
    """
    digest = TensorDigest(dtype, shape)
    for start in range(0, nbytes, len(buffer)):
        piece = buffer[: min(len(buffer), nbytes - start)]
        read_into(start, piece)
        digest.update(piece)
    return digest.text()


def digest_stored(
    stored: StoredTensor, read_into: Callable[[StoredTensor, int, memoryview], None],
    buffer: memoryview,
) -> str:  # fmt: skip
    """Return the digest of a stored tensor; see `digest_tensor`."""

    def read(offset: int, piece: memoryview) -> None:
        read_into(stored, offset, piece)

    return digest_tensor(stored.dtype, stored.shape, stored.nbytes, read, buffer)


def digest_model(tensors: Mapping[str, str]) -> str:
    """Return the digest of a model, given those of its tensors by name."""
    return digest_data([[name, tensors[name]] for name in sorted(tensors)])


def digest_data(data: Any) -> str:
    """Return the digest of plain data, of its JSON in one fixed form."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digest_bytes(text.encode())


def digest_bytes(content: bytes) -> str:
    """Return the digest of bytes."""
    return PREFIX + blake3(content).hexdigest()
