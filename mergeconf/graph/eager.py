"""The operations of `ops` on plain torch tensors: written for plainness, not for speed.

This is the oracle. It shares nothing with the executor but the random generator, and it follows
the written definitions: reductions in blocks of 65,536 elements, order statistics by sorting.
Inside `scope` the random draws are those of one output tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import ldexp, nan, prod

import numpy as np
import torch

from mergeconf.graph import random
from mergeconf.graph.shares import threshold_of

BLOCK = 65_536
LANES = 512
_scope: ContextVar[tuple[int, str]] = ContextVar("scope", default=(0, ""))


@contextmanager
def scope(seed: int, name: str) -> Iterator[None]:
    """Draw, within the block, as for the output tensor `name` of a recipe with that seed."""
    token = _scope.set((seed, name))
    try:
        yield
    finally:
        _scope.reset(token)


def compare(op: str, x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    """Compare as IEEE does; a number is first rounded to float32, as x is."""
    other = y if isinstance(y, torch.Tensor) else torch.tensor(y, dtype=torch.float32)
    functions = {"gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le}
    return functions[op](x, other)


def agrees(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Tell where x is not zero and has the sign of the total; no sign counts as plus."""
    return torch.where(total < 0, x < 0, x > 0)


def only(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return x where the mask is true, else +0."""
    return torch.where(mask, x, torch.zeros_like(x))


def where(mask: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x where the mask is true, else y."""
    return torch.where(mask, x, y)


def choose(mask: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return stored values: those of x where the mask is true, else those of y."""
    common = torch.promote_types(x.dtype, y.dtype)
    return torch.where(mask, x.to(common), y.to(common))


def to_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32."""
    return x.to(torch.float32)


def ones(mask: torch.Tensor) -> torch.Tensor:
    """Return the mask as float32."""
    return mask.to(torch.float32)


def at_most(x: torch.Tensor, bound: float) -> torch.Tensor:
    """Return the smaller of x and the bound."""
    return torch.clamp(x, max=bound)


def no_less(x: torch.Tensor, bound: float) -> torch.Tensor:
    """Return the larger of x and the bound."""
    return torch.clamp(x, min=bound)


def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """Divide 1 by x."""
    return 1.0 / x


def total_of(x: torch.Tensor) -> float:
    """Sum in float64 by the written order; see `_sum_in_order`."""
    return _sum_in_order(x.to(torch.float64))


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum the products, each exact in float64, by the written order."""
    return _sum_in_order(x.to(torch.float64) * y.to(torch.float64))


def count(mask: torch.Tensor) -> float:
    """Count the true elements."""
    return float(mask.sum().item())


def kth_largest(x: torch.Tensor, k: int) -> float:
    """Sort everything and look."""
    if x.numel() == 0:
        return 0.0
    return float(torch.sort(x.flatten(), descending=True).values[k - 1].item())


def kth_largest_of_nonzero(x: torch.Tensor, share: float) -> float:
    """Count, sort everything and look."""
    k = int(share * int((x != 0).sum().item()))
    return kth_largest(x, k) if k else float("inf")


def _sum_in_order(x: torch.Tensor) -> float:
    """Sum float64 values in the order that defines the result.

    Blocks are as many whole rows as fit into 65,536 elements; a longer row is cut into pieces of
    65,536. A block, padded with zeros, is laid out as (128, 512); its rows are added from the
    first to the last; of the 512 sums the 16 rows of 32 likewise; then the 32 one by one; then
    the blocks in a binary tree, padded with zeros to a power of two.
    """
    row = x.shape[-1] if x.dim() > 1 else x.numel()
    if x.numel() == 0:
        return 0.0
    if row <= BLOCK:
        pieces = list(torch.split(x.flatten(), BLOCK // row * row))
    else:
        pieces = [piece for line in x.reshape(-1, row) for piece in torch.split(line, BLOCK)]
    padded = torch.zeros(len(pieces), BLOCK, dtype=torch.float64)
    for block, piece in zip(padded, pieces, strict=True):
        block[: len(piece)] = piece
    rows = _add_rows(padded.reshape(-1, BLOCK // LANES, LANES))
    rows = _add_rows(rows.reshape(-1, 16, 32))
    sums = _add_rows(rows.reshape(-1, 32, 1)).flatten()
    tree = torch.zeros(1 << (len(sums) - 1).bit_length(), dtype=torch.float64)
    tree[: len(sums)] = sums
    while len(tree) > 1:
        tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
    return float(tree.item()) + 0.0  # a sum of −0 alone is +0


def _add_rows(x: torch.Tensor) -> torch.Tensor:
    total = x[:, 0].clone()
    for row in range(1, x.shape[1]):
        total = total + x[:, row]
    return total


def _draws(shape: Sequence[int], stream: str, model: int, draw: int) -> torch.Tensor:
    seed, name = _scope.get()
    key = random.stream_key(seed, name, stream, model, draw)
    values = np.empty(torch.Size(shape).numel(), np.uint16)
    random.fill_draws(key, 0, values)
    return torch.from_numpy(values.astype(np.int32)).reshape(tuple(shape))


def bernoulli(like: torch.Tensor, probability: float, stream: str, model: int) -> torch.Tensor:
    """Draw a mask that is true with the probability."""
    return _draws(like.shape, stream, model, 0) < threshold_of(probability)


def bernoulli_by_rank(
    x: torch.Tensor, density: float, epsilon: float, stream: str, model: int
) -> torch.Tensor:
    """Sort each row; look up how many of it are smaller and how many are not larger."""
    if x.numel() == 0:
        return torch.zeros(x.shape, dtype=torch.bool)
    bits = torch.where(x.isnan(), torch.full_like(x, torch.nan), x).contiguous()
    keys = _rows_of(bits.view(torch.int32))  # ordered as the values are, NaN above all
    in_order = torch.sort(keys, dim=1).values
    smaller = torch.searchsorted(in_order, keys)
    not_larger = torch.searchsorted(in_order, keys, right=True)
    twice = (smaller + not_larger - 1).to(torch.float64)
    last = keys.shape[1] - 1
    offset = (twice - last) / last if last else torch.zeros_like(twice)
    shares = torch.round((density + epsilon * offset) * 65_536).clamp(1, 65_535)
    return _draws(x.shape, stream, model, 0) < shares.reshape(x.shape)


def _rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor: its last dimension, or all of one that has no second one."""
    return x.reshape(-1, x.shape[-1] if x.dim() > 1 else x.numel())


def combine_rows(
    terms: Sequence[torch.Tensor],
    vectors: Sequence[torch.Tensor],
    function: Callable[..., tuple[float, ...]],
    options: tuple[float | int | bool | str, ...],
) -> torch.Tensor:
    """Call the function for every row, or for all at once if it takes arrays."""
    if terms[0].numel() == 0:
        return terms[0]
    wide = [_rows_of(vector).to(torch.float64) for vector in vectors]
    gram = [_sum_rows(x * y) for i, x in enumerate(wide) for y in wide[: i + 1]]
    if getattr(function, "takes_arrays", False):
        found = np.stack(function(*(column.numpy() for column in gram), *options), axis=1)
    else:
        numbers = torch.stack(gram, dim=1).tolist()
        found = np.array([function(*row, *options) for row in numbers])
    coefficients = torch.from_numpy(found).to(torch.float32)
    rows = [_rows_of(term) for term in terms]
    total = rows[0] * coefficients[:, :1]
    for index in range(1, len(rows)):
        total = total + rows[index] * coefficients[:, index : index + 1]
    return total.reshape(terms[0].shape)


def _sum_rows(x: torch.Tensor) -> torch.Tensor:
    """Sum each row of float64 values in the order that defines the result.

    A row is padded with zeros to a multiple of L, the smallest power of two that is not less than
    the row, but 512 at most; laid out as lines of L, these are added from the first to the last;
    then the second half of the L sums is added to the first half, until one is left.
    """
    rows, width = x.shape
    lanes = min(LANES, 1 << (width - 1).bit_length())
    padded = torch.zeros(rows, -(-width // lanes) * lanes, dtype=torch.float64)
    padded[:, :width] = x
    sums = _add_rows(padded.reshape(rows, -1, lanes))
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0] + 0.0  # no sum is -0


def combine_columns(
    terms: Sequence[torch.Tensor],
    vectors: Sequence[torch.Tensor],
    function: Callable[..., tuple[float, ...]],
    options: tuple[float | int | bool | str, ...],
) -> torch.Tensor:
    """Call the function for every column."""
    if terms[0].numel() == 0:
        return terms[0]
    width = prod(terms[0].shape[1:])
    wide = [vector.reshape(-1, width).to(torch.float64) for vector in vectors]
    gram = [_sum_columns(x * y) for i, x in enumerate(wide) for y in wide[: i + 1]]
    found = [function(*numbers, *options) for numbers in zip(*gram, strict=True)]
    coefficients = torch.tensor(found, dtype=torch.float64).to(torch.float32)
    rows = [term.reshape(-1, width) for term in terms]
    total = rows[0] * coefficients[:, 0]
    for index in range(1, len(rows)):
        total = total + rows[index] * coefficients[:, index]
    return total.reshape(terms[0].shape)


def _sum_columns(x: torch.Tensor) -> list[float]:
    """Sum each column of float64 values without error, as whole multiples of 2^-84.

    Each value is first rounded to such a multiple; a column that holds one of 2^60 or more in
    magnitude, or NaN, comes to NaN. The sum is rounded once, to float64.
    """
    return [
        sum(round(ldexp(value, 84)) for value in column) / 2**84
        if all(abs(value) < 2.0**60 for value in column)
        else nan
        for column in x.T.tolist()
    ]


def divergence_of_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """KL = Σ a d / Σ a + log(Σ b / Σ a), a and b being the exponentials, d what their logs differ.

    The largest value of each row is first subtracted from x and y.
    """
    if x.numel() == 0:
        return torch.zeros_like(x)
    left, right = (_rows_of(tensor).to(torch.float64) for tensor in (x, y))
    left = left - left.amax(dim=1, keepdim=True)
    right = right - right.amax(dim=1, keepdim=True)
    a, b = exp_of_negative(left), exp_of_negative(right)
    total = _sum_rows(a)
    shift = _sum_rows(a * (left - right)) / total
    kl = (shift + log(_sum_rows(b) / total)).clamp(min=0) + 0.0
    return kl.to(torch.float32)[:, None].expand(left.shape).reshape(x.shape)


def exp_of_negative(x: torch.Tensor) -> torch.Tensor:
    """Return e^x of float64 values up to 0, with a relative error below 3e-15; see `kernels`."""
    x = x.clamp(min=-700.0)
    k = torch.round(x * 1.4426950408889634)
    r = x * 0.125 - k * (6.93147180369123816490e-01 / 8) - k * (1.90821492927058770002e-10 / 8)
    power = torch.full_like(r, 1 / 40_320)
    for factorial in (5_040, 720, 120, 24, 6, 2, 1, 1):
        power = power * r + 1 / factorial
    for _ in range(3):
        power = power * power
    scale = torch.where(k.isnan(), 0.0, k).to(torch.int64) + 1023
    return power * (scale << 52).view(torch.float64)


def log(x: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of positive float64 values, with an error below 1e-15 near 1."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = torch.where(small, mantissa * 2, mantissa)
    e = (exponent - small.to(exponent.dtype)).to(torch.float64)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = torch.full_like(s, 1 / 23)
    for odd in range(21, 0, -2):
        series = series * square + 1 / odd
    return e * 6.93147180369123816490e-01 + (2 * s * series + e * 1.90821492927058770002e-10)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def differs(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Compare bits in the narrower format, and take −0 for +0."""
    wide = torch.promote_types(x.dtype, base.dtype)
    narrow = torch.float32
    if wide in (x.dtype, base.dtype):
        narrow = base.dtype if wide == x.dtype else x.dtype
    left, right = x.to(narrow), base.to(narrow)
    bits = _BITS[left.element_size()]
    same = left.contiguous().view(bits) == right.contiguous().view(bits)
    return ~(same | ((left == 0) & (right == 0)))


def pick(
    candidates: Sequence[torch.Tensor],
    shares: Sequence[int],
    stream: str,
    draw: int,
    eligible: Sequence[torch.Tensor] | None,
    otherwise: torch.Tensor | None,
) -> torch.Tensor:
    """Go through the candidates; each owns the next `share` of the numbers below the total."""
    stored = [*candidates, *([] if otherwise is None else [otherwise])]
    common = stored[0].dtype
    for tensor in stored:
        common = torch.promote_types(common, tensor.dtype)
    shape = candidates[0].shape
    masks = eligible or [torch.ones(shape, dtype=torch.bool)] * len(candidates)
    total = torch.zeros(shape, dtype=torch.int64)
    for mask, share in zip(masks, shares, strict=True):
        total += mask * share
    ticket = (_draws(shape, stream, 0, draw).to(torch.int64) * total) >> 16
    result = (candidates[-1] if otherwise is None else otherwise).to(common).clone()
    upper = torch.zeros(shape, dtype=torch.int64)
    for tensor, mask, share in zip(candidates, masks, shares, strict=True):
        lower, upper = upper, upper + mask * share
        mine = (lower <= ticket) & (ticket < upper)
        result = torch.where(mine, tensor.to(common), result)
    return result
