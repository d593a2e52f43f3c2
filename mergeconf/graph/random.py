"""Random integers as a pure function of (seed, tensor name, stream, element index, draw).

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), as NumPy implements it. Its 128-bit key is a BLAKE2b digest of everything but the
element's index; the index is its counter. So any stretch of any tensor can be drawn by itself,
in any order, on any thread, and gives the same values.

Draws are uniform 16-bit integers, sixteen a block of the generator: element j is the 16-bit word
j mod 16, lowest first, of the block whose counter is j // 16. Probabilities are thereby multiples
of 2^-16.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

DRAWS_PER_BLOCK = 16


def stream_key(seed: int, name: str, stream: str, model: int, draw: int, scope: str = "") -> int:
    """Return the 128-bit key of one stream of one tensor.

    Args:
        seed: The recipe's seed, 0 to 2^64 - 1.
        name: Name of the output tensor.
        stream: Purpose of the draw.
        model: Position of the model that it concerns.
        draw: Number of the draw, from 0.
        scope: The nested merge that it belongs to, or empty.
    """
    parts = (str(seed), name, stream, str(model), str(draw), scope)
    text = b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)
    digest = hashlib.blake2b(text, digest_size=16, person=b"mergeconf-rng-1").digest()
    return int.from_bytes(digest, "little")


def philox(key: int, first: int) -> np.random.Philox:
    """Return Philox4x64-10 with a 128-bit key, about to give the block of counter `first`."""
    # NumPy steps the counter before it computes a block, so it starts one below.
    return np.random.Philox(counter=(first - 1) % (1 << 256), key=key)


def fill_draws(key: int, start: int, out: npt.NDArray[np.uint16]) -> None:
    """Fill `out` (uint16, one dimension) with the draws of the elements from `start` on."""
    first, skip = divmod(start, DRAWS_PER_BLOCK)
    blocks = -(-(skip + len(out)) // DRAWS_PER_BLOCK)
    words = philox(key, first).random_raw(4 * blocks).astype("<u8", copy=False).view("<u2")
    out[:] = words[skip : skip + len(out)]
