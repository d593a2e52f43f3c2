"""From nodes to a tape: which kernels compute each operation.

One function an operation kind. Values live in registers: float32 as `<f4`, masks as `|b1`,
stored bits as the unsigned or float type of their format, draws as `<u2`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, assert_never

import numpy as np

from mergeconf.dtypes import DType
from mergeconf.execution import kernels
from mergeconf.execution.float8 import FromCodes
from mergeconf.execution.tape import Operand, Ref, Tape, TapeBuilder
from mergeconf.graph.nodes import (
    Agreed,
    Cast,
    Choose,
    ColumnDot,
    ColumnItem,
    ColumnMean,
    Elementwise,
    Gather,
    Input,
    Item,
    KthLargest,
    LowRank,
    Node,
    Observe,
    PerBlock,
    PerColumn,
    PerRow,
    Pick,
    Random,
    RankShare,
    Reduce,
    Reduction,
    RowCombine,
    RowDivergence,
    RowMask,
    Scalar,
    stored_dtype,
)
from mergeconf.graph.shares import RESOLUTION

_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "minimum": kernels.minimum, "maximum": kernels.maximum,
}  # fmt: skip
_UNARY = {"neg": np.negative, "abs": np.absolute, "sqrt": np.sqrt}
_COMPARE = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}
_LOGIC = {"and": np.logical_and, "or": np.logical_or, "not": np.logical_not}


def lower_output(root: Node, recall: Collection[int] = ()) -> Tape:
    """Return the tape that computes tiles of the output tensor and stores them.

    Args:
        root: The output.
        recall: Identities of nodes that an earlier sweep has kept.
    """
    lowering = _Lowering(count=True, recall=recall)
    lowering.builder.hand_over("store", lowering.output(root))
    return lowering.builder.finish()


def lower_reductions(
    reductions: Sequence[Reduction], keep: Collection[int] = (), recall: Collection[int] = ()
) -> Tape:
    """Return the tape that feeds all the reductions given with tiles.

    Args:
        reductions: What is fed.
        keep: Identities of nodes to keep for later sweeps, where they are computed.
        recall: Identities of nodes that an earlier sweep has kept.
    """
    lowering = _Lowering(count=False, keep=keep, recall=recall)
    for index, node in enumerate(reductions):
        lowering.feed(node, index)
    return lowering.builder.finish(reductions)


class _Lowering:
    """Lowers the nodes of interned expressions, each once."""

    def __init__(
        self, *, count: bool, keep: Collection[int] = (), recall: Collection[int] = ()
    ) -> None:
        self.builder = TapeBuilder()
        self.count = count
        self._keep, self._recall = keep, recall
        self._values: dict[object, Ref] = {}

    def value(self, node: Node) -> Ref:
        """Return the register that holds a node's value, computing it where it is new."""
        key = id(node)
        if key not in self._values:
            if key in self._recall:
                self._values[key] = self.builder.recall(node)
            else:
                self._values[key] = self._lower(node)
                if key in self._keep:
                    self.builder.hand_over("keep", self._values[key], node)
        return self._values[key]

    def output(self, root: Node) -> Ref:
        """Return the register of the output; what was computed is checked before it is rounded."""
        if root.kind == "f32" or (isinstance(root, Cast) and root.x.kind != "stored"):
            x = self.value(root.x if isinstance(root, Cast) else root).seen_as("<u4")
        elif isinstance(root, Cast):
            x = self._to_float32(self.value(root.x), stored_dtype(root.x)).seen_as("<u4")
        else:
            return self.value(root)
        target = root.dtype if isinstance(root, Cast) else DType.float32
        self.builder.hand_over("check", x, kernels.LIMIT_BITS[target])
        if target is DType.bfloat16:
            return self.builder.emit(kernels.float32_to_bfloat16, x, out="<u2", scratch=["<u4"])
        return self._from_float32(x.seen_as("<f4"), target)

    def feed(self, node: Reduction, index: int) -> None:
        """Hand what a reduction reduces to it."""
        match node:
            case ColumnMean():
                self.builder.hand_over("reduce", self.value(node.x), index)
            case KthLargest():
                self.builder.hand_over("reduce", self.value(node.x).seen_as("<u4"), index)
            case Reduce(op="count"):
                self.builder.hand_over("reduce", self.value(node.args[0]), index)
            case Reduce(op="sum"):
                self.builder.hand_over("reduce", self._double(node.args[0]), index)
            case Reduce(op="dot"):
                self.builder.hand_over("reduce", self._product(*node.args), index)
            case ColumnDot():
                self.builder.hand_over("reduce", self._product(node.x, node.y), index)
            case _:
                raise AssertionError(node)

    def _product(self, x: Node, y: Node) -> Ref:
        return self.builder.emit(np.multiply, self._double(x), self._double(y), out="<f8")

    def _double(self, node: Node) -> Ref:
        key = ("double", id(node))
        if key not in self._values:
            self._values[key] = self.builder.emit(kernels.widen, self.value(node), out="<f8")
        return self._values[key]

    def _lower(self, node: Node) -> Ref:
        match node:
            case Input():
                return self.builder.load(node.slot, node.dtype.numpy)
            case Random():
                return self.builder.draw(node)
            case LowRank() | PerRow() | PerColumn() | PerBlock():
                return self.builder.expand(node)
            case Gather():
                return self.builder.rows(node, node.dtype.numpy)
            case RowMask():
                return self.builder.rows(node, "|b1")
            case ColumnMean() | ColumnItem():
                return self.builder.rows(node, "<f4")
            case Cast():
                return self._cast(node)
            case Elementwise():
                return self._elementwise(node)
            case Pick():
                return self._pick(node)
            case Choose():
                condition, chosen = self.value(node.mask), self.value(node.x)
                return self._blend(self._spread(condition, chosen), chosen, self.value(node.y))
            case Agreed():
                return self._agreed(node)
            case RankShare():
                raise AssertionError("computed with the draw that it is a threshold for")
            case RowDivergence():
                x, y = self.value(node.x), self.value(node.y)
                return self.builder.emit(kernels.DivergenceOfRows(node.row), x, y, out="<f4")
            case RowCombine():
                combine = kernels.CombineRows(
                    node.row, len(node.vectors), node.function, node.options
                )
                args = [self.value(arg) for arg in (*node.vectors, *node.terms)]
                return self.builder.emit(combine, *args, out="<f4")
            case Observe():
                result = self.value(node.x)
                if self.count:
                    for name, mask in node.counts:
                        self.builder.hand_over("count", self.value(mask), name)
                return result
            case _:
                assert_never(node)

    def _agreed(self, node: Agreed) -> Ref:
        first, *rest = (self.value(arg) for arg in node.args)
        bits = _bits(first)
        for other in rest:
            pair = first.seen_as(bits), other.seen_as(bits)
            differs = self.builder.emit(np.not_equal, *pair, out="|b1")
            self.builder.hand_over("refuse", differs)
        return first

    # --- formats -----------------------------------------------------------------------------

    def _cast(self, node: Cast) -> Ref:
        x = self.value(node.x)
        if node.x.kind == "stored":
            x = self._to_float32(x, stored_dtype(node.x))
        return self._from_float32(x, node.dtype)

    def _from_float32(self, x: Ref, dtype: DType) -> Ref:
        match dtype:
            case DType.float32:
                return x
            case DType.bfloat16:
                kernel = kernels.any_float32_to_bfloat16
                return self.builder.emit(kernel, x.seen_as("<u4"), out="<u2", scratch=["<u4"])
            case DType.float16:
                return self.builder.emit(kernels.narrow, x, out="<f2").seen_as("<u2")
            case DType.float64:
                return self.builder.emit(kernels.widen, x, out="<f8")
            case _:
                raise AssertionError(f"methods do not write {dtype}")

    def _to_float32(self, x: Ref, dtype: DType) -> Ref:
        match dtype:
            case DType.float32:
                return x
            case DType.bfloat16:
                return self.builder.emit(kernels.bfloat16_to_float32, x, out="<u4").seen_as("<f4")
            case DType.float16:
                return self.builder.emit(kernels.widen, x.seen_as("<f2"), out="<f4")
            case DType.float64:
                return self.builder.emit(kernels.narrow, x, out="<f4")
            case DType.float8_e4m3fn | DType.float8_e5m2:
                return self.builder.emit(FromCodes(dtype), x, out="<f4")
            case _:
                raise AssertionError(f"methods do not compute with {dtype}")

    # --- float32 and masks -------------------------------------------------------------------

    def _operand(self, arg: Node | Scalar | float) -> Operand:
        if isinstance(arg, float):
            return np.float32(arg)
        if isinstance(arg, (Reduce, KthLargest, Item)):
            return self.builder.scalar(arg)
        return self.value(arg)

    def _elementwise(self, node: Elementwise) -> Ref:
        op, emit = node.op, self.builder.emit
        if op == "draw_below":
            return self._draw_below(node)
        args = [self._operand(arg) for arg in node.args]
        if op in _BINARY:
            return emit(_BINARY[op], *args, out="<f4")
        if op in _UNARY:
            return emit(_UNARY[op], *args, out="<f4")
        if op in _COMPARE:
            return emit(_COMPARE[op], *args, out="|b1")
        if op in _LOGIC:
            return emit(_LOGIC[op], *args, out="|b1")
        first, *rest = (arg for arg in args if isinstance(arg, Ref))
        match op:
            case "to_float":
                return emit(kernels.widen, first.seen_as("|u1"), out="<f4")
            case "only":
                bits = rest[0].seen_as("<u4")
                return emit(np.bitwise_and, bits, self._spread(first, bits), out="<u4").seen_as(
                    "<f4"
                )
            case "where":
                x, y = (ref.seen_as("<u4") for ref in rest)
                return self._blend(self._spread(first, x), x, y).seen_as("<f4")
            case "agrees":
                return self._agrees(first, rest[0])
            case "differs":
                return self._differs(first, rest[0], _dtype_of_args(node))
            case _:
                raise AssertionError(op)

    def _draw_below(self, node: Elementwise) -> Ref:
        draw, threshold = node.args
        assert isinstance(draw, Random)
        ticket = self.value(draw)
        if isinstance(threshold, RankShare):
            kernel = kernels.KeepByRank(threshold.row, threshold.density, threshold.epsilon)
            bits, scratch = self.value(threshold.x).seen_as("<u4"), ("<u4", "<i8")
            return self.builder.emit(kernel, ticket, bits, out="|b1", scratch=scratch)
        assert isinstance(threshold, float)
        if threshold >= RESOLUTION:
            return self.builder.emit(np.equal, ticket, ticket, out="|b1")
        return self.builder.emit(np.less, ticket, np.uint16(threshold), out="|b1")

    def _agrees(self, x: Ref, total: Ref) -> Ref:
        emit, zero = self.builder.emit, np.float32(0)
        key = ("negative", total)
        if key not in self._values:
            self._values[key] = emit(np.less, total, zero, out="|b1")
        negative_total = self._values[key]
        positive = emit(np.greater, x, zero, out="|b1")
        negative = emit(np.less, x, zero, out="|b1")
        # total < 0 ? x < 0 : x > 0, by exclusive or
        either = emit(np.not_equal, positive, negative, out="|b1")
        chosen = emit(np.logical_and, either, negative_total, out="|b1")
        return emit(np.not_equal, chosen, positive, out="|b1")

    # --- stored bits -------------------------------------------------------------------------

    def _spread(self, mask: Ref, like: Ref) -> Ref:
        """Return a mask as all ones or all zeros, in integers of the size of `like`."""
        size = np.dtype(like.dtype).itemsize
        key = ("spread", mask.register, size)
        if key not in self._values:
            as_bytes = self.builder.emit(kernels.mask_bytes, mask.seen_as("|i1"), out="|i1")
            if size > 1:
                as_bytes = self.builder.emit(kernels.widen, as_bytes, out=f"<i{size}")
            self._values[key] = as_bytes.seen_as(_bits(like))
        return self._values[key]

    def _blend(self, spread: Ref, x: Ref, y: Ref) -> Ref:
        """Return the bits of x where the mask is all ones, else those of y."""
        emit, bits = self.builder.emit, _bits(x)
        left, right = x.seen_as(bits), y.seen_as(bits)
        difference = emit(np.bitwise_xor, left, right, out=bits)
        kept = emit(np.bitwise_and, difference, spread, out=bits)
        return emit(np.bitwise_xor, kept, right, out=bits).seen_as(x.dtype)

    def _differs(self, x: Ref, base: Ref, dtype: DType) -> Ref:
        emit, bits = self.builder.emit, _bits(x)
        number = np.dtype(bits).type
        sign = 1 << (8 * dtype.itemsize - 1)
        key = ("compared bits", base.register)
        if key not in self._values:
            # All bits count where the base is not zero; where it is, the sign does not.
            magnitude = emit(np.bitwise_and, base.seen_as(bits), number(sign - 1), out=bits)
            nonzero = emit(np.not_equal, magnitude, number(0), out="|b1")
            spread = self._spread(nonzero, base.seen_as(bits))
            self._values[key] = emit(np.bitwise_or, spread, number(sign - 1), out=bits)
        difference = emit(np.bitwise_xor, x.seen_as(bits), base.seen_as(bits), out=bits)
        counted = emit(np.bitwise_and, difference, self._values[key], out=bits)
        return emit(np.not_equal, counted, number(0), out="|b1")

    def _pick(self, node: Pick) -> Ref:
        """Draw a ticket below the total of the shares in play; find whose it is.

        Each candidate owns the next `share` numbers; going from the last to the first, a
        candidate takes the place of what was there where the ticket is below its upper end.
        """
        emit = self.builder.emit
        uppers: list[Operand] = []
        total: Operand
        if node.eligible is None:
            sums = np.cumsum(node.shares)
            uppers = [np.int16(upper) for upper in sums]
            total = np.uint32(sums[-1])
        else:
            for share, mask in zip(node.shares, node.eligible, strict=True):
                owned = emit(kernels.widen, self.value(mask).seen_as("|u1"), out="<i2")
                if share != 1:
                    owned = emit(np.multiply, owned, np.int16(share), out="<i2")
                uppers.append(emit(np.add, uppers[-1], owned, out="<i2") if uppers else owned)
            last = uppers[-1]
            assert isinstance(last, Ref)
            total = emit(kernels.widen, last.seen_as("<u2"), out="<u4")
        wide = emit(kernels.widen, self.value(node.draw), out="<u4")
        product = emit(np.multiply, wide, total, out="<u4")
        shifted = emit(np.right_shift, product, np.uint32(16), out="<u4")
        ticket = emit(kernels.narrow, shifted, out="<i2")
        chosen = self.value(node.candidates[-1] if node.otherwise is None else node.otherwise)
        start = len(node.candidates) - (1 if node.otherwise is None else 0)
        for index in reversed(range(start)):
            mine = emit(np.less, ticket, uppers[index], out="|b1")
            candidate = self.value(node.candidates[index])
            chosen = self._blend(self._spread(mine, candidate), candidate, chosen)
        return chosen


def _bits(ref: Ref) -> str:
    return f"<u{np.dtype(ref.dtype).itemsize}"


def _dtype_of_args(node: Elementwise) -> DType:
    first = node.args[0]
    assert not isinstance(first, (float, Reduce, KthLargest, Item))
    return stored_dtype(first)
