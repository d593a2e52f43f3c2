"""The closed set of nodes that a lazy tensor expression is made of.

Frozen dataclasses with structural equality; `rewrite.interned` makes equal parts one object. A node
says what is computed, never how: tiles, buffers and passes are the executor's. Every node stands
for a value of one kind:

    f32      one float32 an element
    mask     one truth value an element
    stored   the bits of a stored value, untouched, in a `DType`
    draw     one uniform 16-bit integer an element
    scalar   one float64 for the whole tensor
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mergeconf.dtypes import DType

if TYPE_CHECKING:  # it takes numpy with it, which checking a recipe does without
    from mergeconf.graph.rows import Rows

Kind = Literal["f32", "mask", "stored", "draw"]
Op = Literal[
    "add", "sub", "mul", "div", "neg", "abs", "minimum", "maximum", "sqrt",
    "gt", "ge", "lt", "le",
    "and", "or", "not",
    "only", "where", "to_float", "agrees", "differs", "draw_below",
]  # fmt: skip
MASK_OPS = frozenset(
    {"gt", "ge", "lt", "le", "and", "or", "not", "agrees", "differs", "draw_below"}
)


@dataclass(frozen=True, slots=True)
class Input:
    """A stored tensor that is read: the plan binds the slot to a tensor in a file."""

    slot: int
    """Position among the inputs of the output tensor."""
    dtype: DType

    @property
    def kind(self) -> Kind:
        """Stored bits."""
        return "stored"


@dataclass(frozen=True, slots=True)
class Cast:
    """Convert to a stored format, rounding to nearest even; `float32` is what is computed in."""

    x: Node
    dtype: DType
    kind: Kind
    """`f32` for a value to compute with, `stored` for bits to keep."""


@dataclass(frozen=True, slots=True)
class Elementwise:
    """An operation on the elements at one position; scalars apply to all."""

    op: Op
    args: tuple[Node | Scalar | float, ...]
    kind: Kind


@dataclass(frozen=True, slots=True)
class Pick:
    """Copy at each position the value of one candidate, drawn in proportion to its share.

    Where `eligible` is given only candidates whose mask is true take part, and `otherwise` is
    kept where none is.
    """

    draw: Random
    candidates: tuple[Node, ...]
    shares: tuple[int, ...]
    """Integers, one a candidate; their sum is at most 32,767."""
    eligible: tuple[Node, ...] | None
    otherwise: Node | None
    dtype: DType

    @property
    def kind(self) -> Kind:
        """Stored bits."""
        return "stored"


@dataclass(frozen=True, slots=True)
class Choose:
    """Copy stored bits: `x` where the mask is true, else `y`."""

    mask: Node
    x: Node
    y: Node
    dtype: DType

    @property
    def kind(self) -> Kind:
        """Stored bits."""
        return "stored"


@dataclass(frozen=True, slots=True)
class Random:
    """One uniform 16-bit integer an element, a function of seed, tensor name and these fields."""

    stream: str
    """The draw's purpose."""
    model: int
    """Position of the model in the recipe that it concerns, or 0."""
    draw: int
    """Number of the draw, from 0."""
    scope: int = 0
    """Whose seed and tensor name it follows: 0 for the output tensor's own, else the number of
    a nested merge's tensor that the expression is made from."""

    @property
    def kind(self) -> Kind:
        """A uniform integer."""
        return "draw"


@dataclass(frozen=True, slots=True)
class Agreed:
    """Stored bits that have to be the same in all arguments: whole numbers, which no method
    merges. A run fails where they differ."""

    args: tuple[Node, ...]
    dtype: DType

    @property
    def kind(self) -> Kind:
        """Stored bits."""
        return "stored"


@dataclass(frozen=True, slots=True)
class Observe:
    """The value of `x`, unchanged; besides, the true elements of masks are counted by name."""

    x: Node
    counts: tuple[tuple[str, Node], ...]
    kind: Kind


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two small matrices: at each position Σ_k left[row, k] · right[k, column].

    The terms are rounded to float32 one by one and added from the first to the last. The rows are
    those of the product, `width` elements each, whatever the shape of the tensor around it.
    """

    left: Input
    """rows × rank; small enough to be kept whole."""
    right: Input
    """rank × width."""
    rank: int
    width: int
    left_transposed: bool = False
    """Whether it is stored as rank × rows."""
    right_transposed: bool = False
    """Whether it is stored as width × rank."""
    rows: Rows | None = None
    """Row of the product for each row, where they are taken in another order."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class PerRow:
    """One value for each row of `width` elements, at every element of the row."""

    x: Input
    """One element a row; kept whole."""
    width: int
    rows: Rows | None = None
    """Element of the input for each row, where they are taken in another order."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class PerColumn:
    """One value for each column, at every element of the column."""

    x: Input
    """One element a column; kept whole."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One value for each block of rows and columns, at every element of the block.

    The tensor is a stack of matrices, in each of which the blocks begin anew; the last blocks of a
    matrix may be cut off by its edges.
    """

    x: Input
    """One element a block, row by row; kept whole."""
    width: int
    """Elements of a row."""
    height: int
    """Rows of a matrix."""
    block: tuple[int, int]
    """Rows and columns of a block."""
    exponents: bool = False
    """Whether the input holds exponents: the value is 2 to the power of (bits − 127)."""
    rows: Rows | None = None
    """Row of the stack for each row, where they are taken in another order."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows of a stored tensor, in another order, some of them left out or missing."""

    x: Input
    rows: Rows
    """Row of the input for each row; where it is absent, the bits are 0."""
    width: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """Stored bits."""
        return "stored"

    @property
    def dtype(self) -> DType:
        """That of the input."""
        return self.x.dtype


@dataclass(frozen=True, slots=True)
class RowMask:
    """True at every element of the rows that are not absent."""

    rows: Rows
    width: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """One truth value an element."""
        return "mask"


@dataclass(frozen=True, slots=True)
class ColumnMean:
    """The mean of each column over the first rows of the tensor, at every element of the column.

    The values are added as whole multiples of 2^-60, exactly, so that their order does not matter;
    beyond 2^20 the mean is NaN.
    """

    x: Node
    rows: int
    """How many rows count."""
    width: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class RankShare:
    """Thresholds for draws that grow with the rank of x within its row; x has no negative value.

    A draw below the threshold happens with a probability that goes linearly from
    density − epsilon, for the smallest of the row, to density + epsilon, for the largest. Equal
    values share the mean of their ranks; see `shares.rank_threshold`.
    """

    x: Node
    density: float
    epsilon: float
    row: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """An integer to compare a draw with."""
        return "draw"


@dataclass(frozen=True, slots=True)
class RowCombine:
    """Σ c_i t_i, with coefficients for each row that come from dot products within the row."""

    vectors: tuple[Node, ...]
    """Their dot products are taken, in float64; the function gets the lower triangle of the Gram
    matrix, by rows, and then the options."""
    terms: tuple[Node, ...]
    function: Callable[..., tuple[float, ...]]
    """Returns as many coefficients as there are terms."""
    options: tuple[float | int | bool | str, ...]
    row: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """KL(softmax x ‖ softmax y) of each row, at every element of the row."""

    x: Node
    y: Node
    row: int
    """Elements of a row."""

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


@dataclass(frozen=True, slots=True)
class Reduce:
    """A sum over the whole tensor, in float64, in a fixed order."""

    op: Literal["sum", "dot", "count"]
    """`sum` of x, `dot` of x and y, or `count` of a mask's true elements."""
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class NonzeroShare:
    """A rank that depends on the values: floor(share · number of values that are not 0)."""

    share: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class KthLargest:
    """The k-th largest value of x, exactly; x has no negative value. NaN counts as largest."""

    x: Node
    k: int | NonzeroShare
    """Counted from 1; where the share comes to rank 0 the result is infinity."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Several scalars from others, by a plain function of Python floats."""

    function: Callable[..., tuple[float, ...]]
    args: tuple[Scalar | float, ...]
    options: tuple[float | int | bool | str, ...] = ()
    """Further arguments, known when the plan is made."""


@dataclass(frozen=True, slots=True)
class Item:
    """One of the scalars that a `Compute` gives."""

    of: Compute
    index: int


@dataclass(frozen=True, slots=True)
class ColumnDot:
    """The dot product of each column of x with the same column of y: one float64 a column.

    The products are added as whole multiples of 2^-84, exactly, so that their order does not
    matter; from 2^60 on the sum is NaN.
    """

    x: Node
    y: Node
    width: int
    """Number of columns: elements of a row."""


@dataclass(frozen=True, slots=True)
class ColumnCompute:
    """Several numbers for each column, by a plain function of Python floats."""

    function: Callable[..., tuple[float, ...]]
    """Called for each column with its dot products and then the options."""
    args: tuple[ColumnDot, ...]
    options: tuple[float | int | bool | str, ...]
    size: int
    """How many numbers the function returns."""
    width: int
    """Number of columns."""


@dataclass(frozen=True, slots=True)
class ColumnItem:
    """One of the numbers that a `ColumnCompute` gives, at every element of the column."""

    of: ColumnCompute
    index: int

    @property
    def kind(self) -> Kind:
        """A value to compute with."""
        return "f32"


Scalar = Reduce | KthLargest | Item
Reduction = Reduce | KthLargest | ColumnMean | ColumnDot
"""Nodes that take a sweep over the whole tensor."""
RowLocal = RankShare | RowCombine | RowDivergence
"""Nodes whose value at a position depends on the whole row."""
Expanded = LowRank | PerRow | PerColumn | PerBlock
"""Nodes made from inputs that are smaller than the tensor, and kept whole while it is computed."""
OfColumns = ColumnMean | ColumnItem
"""Nodes with one value a column, found by a sweep over the whole tensor."""
OfRows = Gather | RowMask | OfColumns
"""Nodes that are filled in row by row."""
Node = (
    Input | Cast | Elementwise | Pick | Choose | Agreed | Random | Observe | Expanded | OfRows
    | RowLocal
)  # fmt: skip
AnyNode = Node | Scalar | Compute | ColumnDot | ColumnCompute


def children(node: AnyNode) -> Iterator[AnyNode]:
    """Yield the nodes that a node is computed from, in order."""
    match node:
        case Input() | Random() | RowMask():
            return
        case Cast():
            yield node.x
        case Elementwise():
            yield from (arg for arg in node.args if not isinstance(arg, float))
        case Pick():
            yield node.draw
            yield from node.candidates
            yield from node.eligible or ()
            if node.otherwise is not None:
                yield node.otherwise
        case Choose():
            yield from (node.mask, node.x, node.y)
        case Agreed() | Reduce():
            yield from node.args
        case Observe():
            yield node.x
            yield from (mask for _, mask in node.counts)
        case LowRank():
            yield from (node.left, node.right)
        case KthLargest() | RankShare() | PerRow() | PerColumn() | PerBlock():
            yield node.x
        case Gather() | ColumnMean():
            yield node.x
        case RowDivergence() | ColumnDot():
            yield from (node.x, node.y)
        case RowCombine():
            yield from node.vectors
            yield from node.terms
        case Compute():
            yield from (arg for arg in node.args if not isinstance(arg, float))
        case ColumnCompute():
            yield from node.args
        case Item() | ColumnItem():
            yield node.of


def stored_dtype(node: Node) -> DType:
    """Return the format of a node of stored bits."""
    while isinstance(node, Observe):
        node = node.x
    assert node.kind == "stored", node
    assert isinstance(node, (Input, Gather, Cast, Pick, Choose, Agreed)), node
    return node.dtype
