"""The operations that merge methods are written with.

Each works on lazy tensors, when a plan is made, and on plain torch tensors, where it calls the
independent implementation in `eager`: the oracle that the streaming executor is tested against.
Arithmetic (`+ - * /`, `abs`) is written with the operators themselves.

    T stands for either kind of tensor, S for a number that is known only when weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

from mergeconf.dtypes import DType
from mergeconf.graph.geometry import Geometry
from mergeconf.graph.lazy import Lazy, LazyScalar, Meaning, as_f32, elementwise
from mergeconf.graph.nodes import (
    Cast,
    Choose,
    ColumnCompute,
    ColumnDot,
    ColumnItem,
    Compute,
    Elementwise,
    Item,
    KthLargest,
    Node,
    NonzeroShare,
    Observe,
    Op,
    Pick,
    Random,
    RankShare,
    Reduce,
    RowCombine,
    RowDivergence,
    Scalar,
)
from mergeconf.graph.shares import RESOLUTION, shares_of, threshold_of

T = Any
S = Any
F = TypeVar("F", bound=Callable[..., tuple[float, ...]])


def _eager() -> Any:
    # torch is loaded only by those who compute eagerly; plans never need it
    from mergeconf.graph import eager

    return eager


# --- sums ------------------------------------------------------------------------------------


def add_all(tensors: Sequence[T]) -> T:
    """Return the sum of tensors, added from the first to the last."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def combine(tensors: Sequence[T], coefficients: Sequence[S | float]) -> T:
    """Return Σ c_i t_i, added from the first to the last; the sum means what its terms mean.

    This is the way to add weights: `+` refuses them, since most sums of weights are mistakes.
    """
    if not isinstance(tensors[0], Lazy):
        return add_all([t * c for t, c in zip(tensors, coefficients, strict=True)])
    terms = [
        elementwise("mul", as_f32(t.node), c.node if isinstance(c, LazyScalar) else float(c))
        for t, c in zip(tensors, coefficients, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = elementwise("add", total, term)
    meanings = {tensor.meaning for tensor in tensors}
    meaning = tensors[0].meaning if len(meanings) == 1 else Meaning.plain
    return Lazy(total, tensors[0].shape, meaning)


def reciprocal(x: T) -> T:
    """Return 1 / x, element by element."""
    if not isinstance(x, Lazy):
        return _eager().reciprocal(x)
    return Lazy(elementwise("div", 1.0, as_f32(x.node)), x.shape)


# --- masks -----------------------------------------------------------------------------------


def _compare(op: Op, x: T, y: T | S | float) -> T:
    if not isinstance(x, Lazy):
        return _eager().compare(op, x, y)
    operand: Node | Scalar | float
    if isinstance(y, Lazy):
        operand = as_f32(y.node)
    else:
        operand = y.node if isinstance(y, LazyScalar) else float(y)
    return Lazy(Elementwise(op, (as_f32(x.node), operand), "mask"), x.shape)


def greater(x: T, y: T | S | float) -> T:
    """Return the mask x > y; false where either is NaN."""
    return _compare("gt", x, y)


def at_least(x: T, y: T | S | float) -> T:
    """Return the mask x >= y; false where either is NaN."""
    return _compare("ge", x, y)


def less(x: T, y: T | S | float) -> T:
    """Return the mask x < y; false where either is NaN."""
    return _compare("lt", x, y)


def both(x: T, y: T) -> T:
    """Return the mask that is true where both masks are."""
    if not isinstance(x, Lazy):
        return x & y
    return Lazy(Elementwise("and", (x.node, y.node), "mask"), x.shape)


def either(x: T, y: T) -> T:
    """Return the mask that is true where at least one of two masks is."""
    if not isinstance(x, Lazy):
        return x | y
    return Lazy(Elementwise("or", (x.node, y.node), "mask"), x.shape)


def opposite(x: T) -> T:
    """Return the mask that is true where the mask is false."""
    if not isinstance(x, Lazy):
        return ~x
    return Lazy(Elementwise("not", (x.node,), "mask"), x.shape)


def agrees(x: T, total: T) -> T:
    """Return the mask that is true where x is not 0 and has the sign of `total`.

    A total of 0 (or NaN) counts as positive. False where x is NaN.
    """
    if not isinstance(x, Lazy):
        return _eager().agrees(x, total)
    return Lazy(Elementwise("agrees", (as_f32(x.node), as_f32(total.node)), "mask"), x.shape)


def only(mask: T, x: T) -> T:
    """Return x where the mask is true, else +0."""
    if not isinstance(x, Lazy):
        return _eager().only(mask, x)
    return Lazy(Elementwise("only", (mask.node, as_f32(x.node)), "f32"), x.shape, x.meaning)


def where(mask: T, x: T, y: T) -> T:
    """Return x where the mask is true, else y; both mean the same."""
    if not isinstance(x, Lazy):
        return _eager().where(mask, x, y)
    node = Elementwise("where", (mask.node, as_f32(x.node), as_f32(y.node)), "f32")
    return Lazy(node, x.shape, x.meaning if x.meaning is y.meaning else Meaning.plain)


def ones(mask: T) -> T:
    """Return 1 where the mask is true, else 0, as float32."""
    if not isinstance(mask, Lazy):
        return _eager().ones(mask)
    return Lazy(Elementwise("to_float", (mask.node,), "f32"), mask.shape)


# --- bounds ----------------------------------------------------------------------------------


def at_most(x: T, bound: float) -> T:
    """Return the smaller of x and the bound, element by element; NaN stays."""
    if not isinstance(x, Lazy):
        return _eager().at_most(x, bound)
    return Lazy(elementwise("minimum", as_f32(x.node), float(bound)), x.shape, x.meaning)


def no_less(x: T, bound: float) -> T:
    """Return the larger of x and the bound, element by element; NaN stays."""
    if not isinstance(x, Lazy):
        return _eager().no_less(x, bound)
    return Lazy(elementwise("maximum", as_f32(x.node), float(bound)), x.shape, x.meaning)


# --- numbers for a whole tensor --------------------------------------------------------------


def total_of(x: T) -> S:
    """Return the sum of all elements, in float64, in a fixed order."""
    if not isinstance(x, Lazy):
        return _eager().total_of(x)
    return LazyScalar(Reduce("sum", (as_f32(x.node),)))


def dot(x: T, y: T) -> S:
    """Return the dot product of two tensors, flattened, in float64, in a fixed order."""
    if not isinstance(x, Lazy):
        return _eager().dot(x, y)
    return LazyScalar(Reduce("dot", (as_f32(x.node), as_f32(y.node))))


def count(mask: T) -> S:
    """Return in how many elements a mask is true."""
    if not isinstance(mask, Lazy):
        return _eager().count(mask)
    return LazyScalar(Reduce("count", (mask.node,)))


def kth_largest(x: T, k: int) -> S:
    """Return the k-th largest of all elements, exactly; x has no negative element.

    NaN counts as larger than everything; an empty tensor gives 0.
    """
    if not isinstance(x, Lazy):
        return _eager().kth_largest(x, k)
    if not 1 <= k <= max(x.numel(), 1):
        raise ValueError(f"k is {k}, but the tensor has {x.numel()} elements")
    return LazyScalar(KthLargest(as_f32(x.node), k))


def kth_largest_of_nonzero(x: T, share: float) -> S:
    """Return the k-th largest of all elements, k = floor(share · number of those that are not 0).

    Exact; x has no negative element. Infinity where k is 0. NaN counts as larger than everything,
    and is not 0.
    """
    if not isinstance(x, Lazy):
        return _eager().kth_largest_of_nonzero(x, share)
    return LazyScalar(KthLargest(as_f32(x.node), NonzeroShare(share)))


def scalars(
    function: Callable[..., tuple[float, ...]],
    *args: S | float,
    size: int,
    options: tuple[float | int | bool | str, ...] = (),
) -> tuple[S, ...]:
    """Return the numbers that a plain function of Python floats gives.

    Args:
        function: A module-level function, called with `args` and then `options`.
        args: Numbers, lazy or not.
        size: How many numbers the function returns.
        options: Further arguments that are known when the plan is made.
    """
    if not any(isinstance(arg, LazyScalar) for arg in args):
        return tuple(map(float, function(*args, *options)))
    nodes = tuple(arg.node if isinstance(arg, LazyScalar) else float(arg) for arg in args)
    compute = Compute(function, nodes, options)
    return tuple(LazyScalar(Item(compute, index)) for index in range(size))


def gram(tensors: Sequence[T]) -> list[S]:
    """Return all dot products of tensors: the lower triangle of the Gram matrix, by rows."""
    return [dot(x, y) for i, x in enumerate(tensors) for y in tensors[: i + 1]]


# --- rows and columns ------------------------------------------------------------------------


def takes_arrays(function: F) -> F:
    """Mark a function of `combine_rows`: in the place of each number it takes a float64 array too,
    one number a row, and then gives arrays, of the same bits as row by row.
    """
    function.takes_arrays = True  # type: ignore[attr-defined]
    return function


def combine_rows(
    terms: Sequence[T],
    vectors: Sequence[T],
    function: Callable[..., tuple[float, ...]],
    options: tuple[float | int | bool | str, ...] = (),
) -> T:
    """Return Σ c_i t_i, with coefficients of its own for each row; a row is the last dimension.

    Args:
        terms: What is combined, added from the first to the last; all mean the same.
        vectors: Tensors whose dot products within a row are taken, in float64, in a fixed order.
        function: A module-level function that returns a coefficient a term. It is called for each
            row with the dot products, as `gram` lists them, and then the options; or once for many
            rows, if `takes_arrays` marks it.
        options: Further arguments that are known when the plan is made.
    """
    if not isinstance(terms[0], Lazy):
        return _eager().combine_rows(terms, vectors, function, options)
    shape = terms[0].shape
    node = RowCombine(
        tuple(as_f32(x.node) for x in vectors), tuple(as_f32(x.node) for x in terms),
        function, options, Geometry.of(shape).row,
    )  # fmt: skip
    meanings = {term.meaning for term in terms}
    return Lazy(node, shape, terms[0].meaning if len(meanings) == 1 else Meaning.plain)


def combine_columns(
    terms: Sequence[T],
    vectors: Sequence[T],
    function: Callable[..., tuple[float, ...]],
    options: tuple[float | int | bool | str, ...] = (),
) -> T:
    """Return Σ c_i t_i, with coefficients of its own for each column.

    A column goes along the first dimension: one for each position of all others. A tensor of one
    dimension is a single column.

    Args:
        terms: What is combined, added from the first to the last; all mean the same.
        vectors: Tensors whose dot products within a column are taken, exactly to 2^-85 a product;
            NaN where a product reaches 2^60.
        function: A module-level function that returns a coefficient a term. It is called for each
            column with the dot products, as `gram` lists them, and then the options.
        options: Further arguments that are known when the plan is made.
    """
    if not isinstance(terms[0], Lazy):
        return _eager().combine_columns(terms, vectors, function, options)
    shape = terms[0].shape
    width = prod(shape[1:])
    nodes = [as_f32(vector.node) for vector in vectors]
    dots = tuple(ColumnDot(x, y, width) for i, x in enumerate(nodes) for y in nodes[: i + 1])
    compute = ColumnCompute(function, dots, options, len(terms), width)
    products = [
        elementwise("mul", as_f32(term.node), ColumnItem(compute, index))
        for index, term in enumerate(terms)
    ]
    total = products[0]
    for product in products[1:]:
        total = elementwise("add", total, product)
    meanings = {term.meaning for term in terms}
    return Lazy(total, shape, terms[0].meaning if len(meanings) == 1 else Meaning.plain)


def divergence_of_rows(x: T, y: T) -> T:
    """Return KL(softmax x ‖ softmax y) of each row, at every element; never negative.

    A row is the last dimension. Computed in float64, to about 1e-14 absolutely; NaN where a row
    holds a value that is not finite.
    """
    if not isinstance(x, Lazy):
        return _eager().divergence_of_rows(x, y)
    node = RowDivergence(as_f32(x.node), as_f32(y.node), Geometry.of(x.shape).row)
    return Lazy(node, x.shape)


# --- random choice ---------------------------------------------------------------------------


def bernoulli(like: T, probability: float, stream: str, model: int) -> T:
    """Return a mask of the shape of `like`, true with the probability, independently.

    Args:
        like: Gives the shape.
        probability: 0 to 1; used as a multiple of 2^-16.
        stream: The purpose of the draw, for the random generator.
        model: Position of the model in the recipe, counted from 0.
    """
    if not isinstance(like, Lazy):
        return _eager().bernoulli(like, probability, stream, model)
    threshold = min(threshold_of(probability), RESOLUTION)
    node = Elementwise("draw_below", (Random(stream, model, 0), float(threshold)), "mask")
    return Lazy(node, like.shape)


def bernoulli_by_rank(x: T, density: float, epsilon: float, stream: str, model: int) -> T:
    """Return a mask, true with a probability that depends on the rank of x within its row.

    The probability goes linearly from density − epsilon, for the smallest element of a row, to
    density + epsilon, for the largest; both lie inside (0, 1). Equal elements share the mean of
    their ranks, NaN counts as larger than everything, and a row of one element has the density.

    Args:
        x: Magnitudes: no element is negative. A row is the last dimension.
        density: Mean probability.
        epsilon: Half the range of the probabilities.
        stream: The purpose of the draw, for the random generator.
        model: Position of the model in the recipe, counted from 0.
    """
    if not isinstance(x, Lazy):
        return _eager().bernoulli_by_rank(x, density, epsilon, stream, model)
    shares = RankShare(as_f32(x.node), float(density), float(epsilon), Geometry.of(x.shape).row)
    node = Elementwise("draw_below", (Random(stream, model, 0), shares), "mask")
    return Lazy(node, x.shape)


def differs(x: T, base: T) -> T:
    """Return the mask that is true where a stored value differs from the base's.

    −0 equals +0, and a NaN equals the NaN of the same bits. Where the two formats differ, both
    are first converted to the narrower one (float32 where neither holds the other's values).
    """
    if not isinstance(x, Lazy):
        return _eager().differs(x, base)
    common = narrower(x.dtype, base.dtype)
    nodes = (_stored_as(x, common), _stored_as(base, common))
    return Lazy(Elementwise("differs", nodes, "mask"), x.shape)


def pick(
    candidates: Sequence[T],
    weights: Sequence[float],
    stream: str,
    draw: int = 0,
    eligible: Sequence[T] | None = None,
    otherwise: T | None = None,
) -> T:
    """Return at each position the stored value of one candidate, drawn in proportion to weights.

    Args:
        candidates: Stored tensors; copied bit for bit where their formats are equal.
        weights: One number of at least 0 a candidate.
        stream: The purpose of the draw, for the random generator.
        draw: Number of the draw, from 0.
        eligible: Masks, one a candidate: only those that are true at a position take part.
        otherwise: Stored tensor kept where no candidate is eligible.
    """
    shares = shares_of(tuple(weights))
    if not isinstance(candidates[0], Lazy):
        return _eager().pick(candidates, shares, stream, draw, eligible, otherwise)
    tensors = [*candidates, *([] if otherwise is None else [otherwise])]
    common = widest([tensor.dtype for tensor in tensors])
    node = Pick(
        draw=Random(stream, 0, draw),
        candidates=tuple(_stored_as(tensor, common) for tensor in candidates),
        shares=shares,
        eligible=None if eligible is None else tuple(mask.node for mask in eligible),
        otherwise=None if otherwise is None else _stored_as(otherwise, common),
        dtype=common,
    )
    return Lazy(node, candidates[0].shape, Meaning.weight)


def choose(mask: T, x: T, y: T) -> T:
    """Return stored values: those of x where the mask is true, else those of y."""
    if not isinstance(x, Lazy):
        return _eager().choose(mask, x, y)
    common = widest([x.dtype, y.dtype])
    node = Choose(mask.node, _stored_as(x, common), _stored_as(y, common), common)
    return Lazy(node, x.shape, Meaning.weight)


def observe(x: T, **masks: T) -> T:
    """Return x unchanged; a run counts the true elements of each mask and reports the sums."""
    if not isinstance(x, Lazy):
        return x
    counts = tuple((name, mask.node) for name, mask in masks.items())
    return Lazy(Observe(x.node, counts, x.node.kind), x.shape, x.meaning)


# --- stored formats --------------------------------------------------------------------------

_MANTISSA_AND_EXPONENT = {
    DType.float64: (52, 11), DType.float32: (23, 8), DType.float16: (10, 5),
    DType.bfloat16: (7, 8),
}  # fmt: skip


def _holds(wide: DType, narrow: DType) -> bool:
    wide_bits, narrow_bits = _MANTISSA_AND_EXPONENT[wide], _MANTISSA_AND_EXPONENT[narrow]
    return wide_bits[0] >= narrow_bits[0] and wide_bits[1] >= narrow_bits[1]


def narrower(x: DType, y: DType) -> DType:
    """Return the format of the two whose values the other holds, or float32 if there is none."""
    if _holds(x, y):
        return y
    return x if _holds(y, x) else DType.float32


def widest(dtypes: Sequence[DType]) -> DType:
    """Return the smallest format that holds the values of all those given."""
    for wide in (DType.bfloat16, DType.float16, DType.float32, DType.float64):
        if all(_holds(wide, dtype) for dtype in dtypes):
            return wide
    raise AssertionError("float64 holds every format")


def to_float32(x: T) -> T:
    """Return a tensor to compute with, from a stored one."""
    if not isinstance(x, Lazy):
        return _eager().to_float32(x)
    return Lazy(as_f32(x.node), x.shape, x.meaning)


def _stored_as(x: Lazy, dtype: DType) -> Node:
    return x.node if x.dtype is dtype else Cast(x.node, dtype, "stored")
