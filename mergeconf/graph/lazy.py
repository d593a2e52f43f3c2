"""Lazy tensors: what a merge method sees when a plan is made.

Ordinary arithmetic on a `Lazy` builds nodes. Each carries a meaning, so that a formula which
adds two weights, or passes a delta off as a model, fails when the plan is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

from mergeconf.dtypes import DType
from mergeconf.graph.nodes import Cast, Elementwise, Kind, Node, Op, Scalar, stored_dtype


class Meaning(Enum):
    """What the numbers of a tensor are."""

    weight = "weight"
    """Parameters of a model."""
    delta = "delta"
    """A difference of two weights, also called a task vector."""
    plain = "plain"
    """Anything else: magnitudes, counts, shares."""


class MeaningError(TypeError):
    """A formula combines weights and deltas in a way that has no meaning."""


@dataclass(frozen=True, slots=True)
class LazyScalar:
    """One number for a whole tensor, known only when the tensor is read."""

    node: Scalar


@dataclass(frozen=True, slots=True, eq=False)
class Lazy:
    """A tensor that will be computed."""

    node: Node
    shape: tuple[int, ...]
    meaning: Meaning = Meaning.plain

    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def dtype(self) -> DType:
        """Stored format of a stored tensor; float32 for what is computed."""
        return stored_dtype(self.node) if self.node.kind == "stored" else DType.float32

    def __add__(self, other: Lazy | float) -> Lazy:
        return _arithmetic("add", self, other)

    def __radd__(self, other: float) -> Lazy:
        return _arithmetic("add", self, other)

    def __sub__(self, other: Lazy | float) -> Lazy:
        return _arithmetic("sub", self, other)

    def __mul__(self, other: Lazy | LazyScalar | float) -> Lazy:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: LazyScalar | float) -> Lazy:
        return _arithmetic("mul", self, other)

    def __truediv__(self, other: Lazy | LazyScalar | float) -> Lazy:
        return _arithmetic("div", self, other)

    def __neg__(self) -> Lazy:
        return Lazy(elementwise("neg", as_f32(self.node)), self.shape, self.meaning)

    def __abs__(self) -> Lazy:
        return Lazy(elementwise("abs", as_f32(self.node)), self.shape)

    def abs(self) -> Lazy:
        """Return magnitudes."""
        return abs(self)


def as_f32(node: Node) -> Node:
    """Return a node to compute with: stored bits are converted to float32."""
    if node.kind == "stored":
        return Cast(node, DType.float32, "f32")
    if node.kind == "mask":
        return Elementwise("to_float", (node,), "f32")
    return node


def elementwise(op: Op, *args: Node | Scalar | float, kind: Kind = "f32") -> Node:
    """Return an element-wise node, leaving out operations that change nothing."""
    if op in ("mul", "div") and args[1] == 1.0 and isinstance(args[1], float):
        assert not isinstance(args[0], float)
        return args[0]  # type: ignore[return-value]  # x·1 and x/1 are x, bit for bit
    return Elementwise(op, args, kind)


_SUMS = {
    ("add", Meaning.weight, Meaning.delta): Meaning.weight,
    ("add", Meaning.delta, Meaning.weight): Meaning.weight,
    ("add", Meaning.delta, Meaning.delta): Meaning.delta,
    ("add", Meaning.plain, Meaning.plain): Meaning.plain,
    ("sub", Meaning.weight, Meaning.weight): Meaning.delta,
    ("sub", Meaning.weight, Meaning.delta): Meaning.weight,
    ("sub", Meaning.delta, Meaning.delta): Meaning.delta,
    ("sub", Meaning.plain, Meaning.plain): Meaning.plain,
}


def _arithmetic(op: Op, x: Lazy, y: Lazy | LazyScalar | float) -> Lazy:
    if isinstance(y, Lazy):
        if x.shape != y.shape:
            raise MeaningError(f"shapes {x.shape} and {y.shape} differ")
        meaning = _meaning_of(op, x.meaning, y.meaning)
        return Lazy(elementwise(op, as_f32(x.node), as_f32(y.node)), x.shape, meaning)
    if op in ("add", "sub") and x.meaning is not Meaning.plain:
        raise MeaningError(f"a number is added to a {x.meaning.value}")
    operand = y.node if isinstance(y, LazyScalar) else float(y)
    return Lazy(elementwise(op, as_f32(x.node), operand), x.shape, x.meaning)


def _meaning_of(op: Op, x: Meaning, y: Meaning) -> Meaning:
    if op in ("add", "sub"):
        meaning = _SUMS.get((op, x, y))
        if meaning is None:
            word = "added to" if op == "add" else "taken from"
            first, second = (y, x) if op == "sub" else (x, y)
            raise MeaningError(f"a {first.value} is {word} a {second.value}")
        return meaning
    if y is Meaning.plain:
        return x
    if x is Meaning.plain and op == "mul":
        return y
    return Meaning.plain
