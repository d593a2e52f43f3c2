"""The random stream written a second time, in plain Python integers, from its definition.

Philox4x64-10 as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and
keys by BLAKE2b as mergeconf/graph/random.py describes them. Shares no code with either.
"""

from __future__ import annotations

from hashlib import blake2b

_MASK = 2**64 - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox4x64_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Return the four output words of four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(_MULTIPLIERS[0] * c0, 2**64)
        high1, low1 = divmod(_MULTIPLIERS[1] * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def key_words(seed: int, name: str, stream: str, model: int, draw: int, scope: str) -> list[int]:
    """Return the two key words of a stream: every field preceded by its length in bytes."""
    digest = blake2b(digest_size=16, person=b"mergeconf-rng-1")
    for field in (seed, name, stream, model, draw, scope):
        content = str(field).encode("utf-8")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    content = digest.digest()
    return [int.from_bytes(content[:8], "little"), int.from_bytes(content[8:], "little")]


def draw_at(
    index: int, seed: int, name: str, stream: str, model: int = 0, draw: int = 0, scope: str = ""
) -> int:
    """Return the 16-bit draw of one element."""
    key = key_words(seed, name, stream, model, draw, scope)
    block, word = divmod(index, 16)
    counter = tuple((block >> (64 * place)) & _MASK for place in range(4))
    words = philox4x64_10(counter, (key[0], key[1]))
    return (words[word // 4] >> (16 * (word % 4))) & 0xFFFF
