"""One output tensor under way: which sweep comes next, and what has been found so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from mergeconf.checkpoint import ReadFiles
from mergeconf.errors import ExecutionError, Problem
from mergeconf.execution.column_dots import ColumnDotReducer, compute_columns
from mergeconf.execution.kept import Kept, choose_kept
from mergeconf.execution.kernels import Array
from mergeconf.execution.products import Whole
from mergeconf.execution.program import (
    Known,
    Program,
    compile_expression,
    evaluate_scalar,
)
from mergeconf.execution.reducers import (
    MOST_SAMPLED,
    SAMPLE_LENGTH,
    SAMPLE_PIECES,
    SAMPLED,
    CountReducer,
    KthLargestReducer,
    Reducer,
    SumReducer,
)
from mergeconf.execution.rounding import Rounding, base_slot, is_rounded
from mergeconf.execution.row_tiles import ColumnReducer
from mergeconf.execution.tape import Tape
from mergeconf.graph.geometry import BLOCK, Geometry
from mergeconf.graph.nodes import (
    ColumnCompute,
    ColumnDot,
    ColumnItem,
    ColumnMean,
    KthLargest,
    OfColumns,
    Random,
    Reduction,
)
from mergeconf.graph.random import stream_key
from mergeconf.plan import TensorPlan

_MOST_SWEEPS = 16
"""A search for an order statistic ends long before; more would be a defect."""


@dataclass(slots=True)
class Sweep:
    """One pass over a tensor, or over a sample of it."""

    tape: Tape
    ranges: list[tuple[int, int]]
    """Pieces of work: first element and number of elements."""
    kind: str
    """`sample`, `reduce` or `final`."""
    reducers: list[Reducer] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)


class TensorRun:
    """The state of one output tensor while it is computed."""

    def __init__(self, plan: TensorPlan, seed: int, chunk: int, room: int) -> None:
        self.plan = plan
        self.program: Program = compile_expression(plan.expression)
        origins = ((seed, plan.name, ""), *plan.origins)
        self.keys: dict[Random, int] = {}
        for node in self.program.randoms:
            seed, name, scope = origins[node.scope]
            self.keys[node] = stream_key(seed, name, node.stream, node.model, node.draw, scope)
        self.rounded = is_rounded(plan)
        """Whether what rounding does is measured."""
        self.base_slot = base_slot(plan)
        self.rounding = Rounding()
        self.lock = threading.Lock()
        self.pending = 0
        """Pieces of the current sweep that are not done yet."""
        self.geometry = Geometry.of(plan.shape)
        self.whole: Whole | None = None
        """The inputs that are kept whole, while the tensor is open."""
        self._to_keep, _ = choose_kept(self.program.repeated, self.geometry, room)
        self.kept: Kept | None = None
        """What sweeps leave for later ones."""
        self._recall: frozenset[int] = frozenset()
        """Identities of the nodes that have been kept for the whole tensor."""
        self._chunk = chunk
        self._columns: dict[int, Array] = {}
        """What is known of columns so far, by the identity of the `ColumnMean`, `ColumnDot` or
        `ColumnCompute` that gives it."""
        self._known: Known = {}
        self._level = -1
        self._open: dict[int, tuple[Reduction, Reducer]] = {}
        self._sampled = False
        self._sweeps = 0
        self._current: Sweep | None = None

    def open(self, reads: ReadFiles) -> None:
        """Read the inputs that are kept whole."""
        if self.program.expanded:
            self.whole = Whole(self.program.expanded, self.plan.inputs, reads)
        if self._to_keep:
            self.kept = Kept(self._to_keep, self.geometry)

    def close(self) -> None:
        """Let go of the inputs that were kept whole, and of what was left by sweeps."""
        self.whole = self.kept = None

    def next_sweep(self) -> Sweep | None:
        """Return the next pass to make, given that the last one is complete; None at the end."""
        done = self._current
        if done is not None and done.kind == "final":
            return None
        if done is not None and done.kind == "reduce":
            self._collect(done)
        if not self._open:
            self._level += 1
            self._sampled = False
            if self._level == len(self.program.levels):
                return self._begin(self.program.output(self._recall), "final")
            self._open = {id(node): (node, self._reducer(node)) for node in self._level_nodes()}
        statistics = tuple(
            node
            for node, reducer in self._open.values()
            if isinstance(reducer, KthLargestReducer) and reducer.wants_sample
        )
        if statistics and not self._sampled:
            self._sampled = True
            return self._begin(self.program.sweep(statistics, recall=self._recall), "sample")
        if done is not None and done.kind == "sample":
            for node in statistics:
                _, reducer = self._open[id(node)]
                assert isinstance(reducer, KthLargestReducer)
                reducer.use_sample()
        reductions = tuple(node for node, _ in self._open.values())
        keep = frozenset(map(id, self._to_keep)) - self._recall
        return self._begin(self.program.sweep(reductions, keep, self._recall), "reduce")

    def columns_of(self, node: OfColumns) -> Array:
        """Return a node's value for each column, as float32."""
        if isinstance(node, ColumnItem):
            return self._columns[id(node.of)][node.index]  # type: ignore[no-any-return]
        return self._columns[id(node)]

    def tile_of(self, tile: int, kind: str) -> int:
        """Return the elements to compute at a time: whole rows or blocks where they are needed."""
        row, unit = self.geometry.row, self.geometry.unit
        if self.program.whole_rows and row > BLOCK:
            return row
        if kind == "reduce" or self.program.whole_rows:
            return max(1, tile // unit) * unit
        return tile

    def _level_nodes(self) -> tuple[Reduction, ...]:
        return self.program.levels[self._level]

    def _begin(self, tape: Tape, kind: str) -> Sweep:
        whole_rows = self.program.whole_rows
        if kind == "sample":
            ranges = self._sample_ranges()
        else:
            ranges = list(self.geometry.stretches(self._chunk, whole_rows=whole_rows))
        sweep = Sweep(tape, ranges, kind)
        sweep.reducers = [self._open[id(node)][1] for node in tape.reductions]
        try:
            sweep.scalars = [evaluate_scalar(node, self._known) for node in tape.scalars]
            for step in tape.instructions:
                if isinstance(step.what, ColumnItem):
                    self._compute_columns(step.what.of)
        except (ValueError, ArithmeticError) as error:
            # a method refuses what only the weights themselves could tell
            raise ExecutionError(Problem(str(error), where=self.plan.name)) from None
        self.pending = len(ranges)
        self._current = sweep
        self._sweeps += 1
        assert self._sweeps <= _MOST_SWEEPS, f"{self.plan.name}: the search does not end"
        return sweep

    def _compute_columns(self, node: ColumnCompute) -> None:
        if id(node) not in self._columns:
            args = [self._columns[id(arg)] for arg in node.args]
            self._columns[id(node)] = compute_columns(node, args)

    def _sample_ranges(self) -> list[tuple[int, int]]:
        """Return pieces spread evenly, never overlapping: the tensor is longer than they are."""
        numel, row = self.plan.numel, self.geometry.row
        length, most = SAMPLE_LENGTH, SAMPLE_PIECES
        if self.program.whole_rows:  # whole rows, so many that a call is worth its cost
            length = row * min(max(1, 4 * SAMPLE_LENGTH // row), numel // row)
            most = max(1, SAMPLE_PIECES * SAMPLE_LENGTH // length)
        pieces = max(most, min(numel // SAMPLED, MOST_SAMPLED) // length)
        pieces = max(1, min(pieces, numel // (4 * length)))
        starts = [piece * numel // pieces for piece in range(pieces)]
        if self.program.whole_rows:
            starts = [start // row * row for start in starts]
        return [(start, length) for start in starts]

    def _reducer(self, node: Reduction) -> Reducer:
        if isinstance(node, ColumnMean):
            return ColumnReducer(node)
        if isinstance(node, ColumnDot):
            return ColumnDotReducer(node)
        if isinstance(node, KthLargest):
            return KthLargestReducer(self.plan.numel, node.k)
        return CountReducer() if node.op == "count" else SumReducer(self.geometry)

    def _collect(self, done: Sweep) -> None:
        self._recall |= frozenset(map(id, done.tape.keeps))
        for key, (_, reducer) in list(self._open.items()):
            value = reducer.finish()
            if isinstance(reducer, (ColumnReducer, ColumnDotReducer)):
                self._columns[key] = reducer.columns()
            if value is not None:
                self._known[key] = (value,)
                del self._open[key]
