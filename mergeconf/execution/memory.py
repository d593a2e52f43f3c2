"""How much memory does a run hold, and which settings keep it within a budget?

The figure is what a run holds beyond the bare interpreter with its modules loaded. It is a sum of
buffers whose sizes are known before the run; measured peaks stay below it (tests/test_memory.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mergeconf.errors import MemoryBudgetError, Problem
from mergeconf.execution.column_dots import BYTES_PER_COLUMN
from mergeconf.execution.kept import Keepable, choose_kept
from mergeconf.execution.kernels import ROW_PIECE
from mergeconf.execution.local import CHUNK_TILES, DEFAULT_TILE, Settings
from mergeconf.execution.products import PIECE, whole_bytes
from mergeconf.execution.program import Program, compile_expression
from mergeconf.execution.reducers import MOST_KEPT
from mergeconf.graph.geometry import BLOCK, Geometry
from mergeconf.graph.nodes import (
    ColumnDot,
    ColumnItem,
    ColumnMean,
    Gather,
    KthLargest,
    Reduce,
    RowMask,
)
from mergeconf.graph.walk import walk
from mergeconf.plan import Plan, TensorPlan
from mergeconf.plan.sources import Derived
from mergeconf.units import format_size

FIXED_BYTES = 12 << 20
"""Threads' stacks, file buffers, the journal, and what the allocator keeps."""
BYTES_PER_TENSOR = 4096
"""Plan, layout and bookkeeping of one output tensor (measured: 2.4 to 3.3 kB)."""
_BYTES_PER_INPUT = 512
_BYTES_PER_COMPUTED = 1536
"""A model's tensor that is computed, with what it is computed from (measured: 1.4 to 1.5 kB)."""
_SCRATCH_PER_ELEMENT = 12
"""Masks, kept candidates and draws that kernels make for themselves, in bytes an element."""
_SCRATCH_PER_ROW_ELEMENT = 96
"""What row kernels make for themselves, in bytes an element of the rows they have in hand."""
_SMALLEST_TILE = 1 << 12


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of a run, in bytes."""

    peak_bytes: int
    """Upper bound of what the run holds beyond the bare interpreter."""
    worker_bytes: int
    """Buffers of one worker thread."""
    reduction_bytes: int
    """State of the reductions of a tensor that is open, its inputs that are kept whole, and what
    its sweeps leave for each other."""
    plan_bytes: int
    """The plan itself."""
    largest: str
    """The output tensor that needs most."""


def default_threads() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(plan: Plan, settings: Settings) -> MemoryEstimate:
    """Return an upper bound of the memory of a run."""
    worker, reductions, largest, most = 0, 0, "", -1
    needs: dict[int, int] = {}
    for tensor in plan.tensors:
        key = id(tensor.expression)  # an expression is made for one shape
        program = compile_expression(tensor.expression)
        kept, room = choose_kept(program.repeated, Geometry.of(tensor.shape), settings.room)
        if key not in needs:
            needs[key] = _worker_bytes(program, tensor, settings, kept)
        state = (
            room + _reduction_bytes(program, tensor) + whole_bytes(program.expanded, tensor.inputs)
        )
        worker, reductions = max(worker, needs[key]), max(reductions, state)
        if needs[key] + state > most:
            largest, most = tensor.name, needs[key] + state
    held = BYTES_PER_TENSOR * len(plan.tensors) + _BYTES_PER_INPUT * sum(
        len(checkpoint.tensors) for checkpoint in plan.checkpoints
    )
    held += plan.tokenizer_bytes + _rows_bytes(plan)
    held += _BYTES_PER_COMPUTED * sum(
        isinstance(tensor, Derived) for model in plan.models for tensor in model.tensors.values()
    )
    open_tensors = min(settings.threads, len(plan.tensors))
    peak = FIXED_BYTES + held + settings.threads * worker + open_tensors * reductions
    return MemoryEstimate(peak, worker, reductions, held, largest)


def _rows_bytes(plan: Plan) -> int:
    """Return what the plan's lists of rows take."""
    expressions = {id(tensor.expression): tensor.expression for tensor in plan.tensors}
    lists = {
        node.rows
        for expression in expressions.values()
        for node in walk(expression)
        if isinstance(node, (Gather, RowMask))
    }
    return sum(rows.numbers.nbytes + sum(part.nbytes for part in rows.runs) for rows in lists)


def _worker_bytes(
    program: Program, tensor: TensorPlan, settings: Settings, kept: Sequence[Keepable]
) -> int:
    tile = settings.tile
    if program.levels or program.whole_rows:
        tile = max(tile, BLOCK)
    scratch = 8 * PIECE if program.expanded else 0
    if program.whole_rows:
        row = Geometry.of(tensor.shape).row
        tile = max(tile, row)
        scratch += max(row, ROW_PIECE) * _SCRATCH_PER_ROW_ELEMENT
    return tile * (program.bytes_per_element(kept) + _SCRATCH_PER_ELEMENT) + scratch


def _reduction_bytes(program: Program, tensor: TensorPlan) -> int:
    most = 0
    for level in program.levels:
        state = 0
        for node in level:
            if isinstance(node, KthLargest):
                # kept values, their copy when they are searched, and a histogram
                kept = min(tensor.numel, MOST_KEPT + 2 * BLOCK)
                state += kept * 4 * 3 + (1 << 16) * 8 * 3
            elif isinstance(node, ColumnMean):
                state += node.width * 64
            elif isinstance(node, Reduce):
                state += Geometry.of(tensor.shape).blocks * 8 * 3
        most = max(most, state)
    return most + _column_bytes(program)


def _column_bytes(program: Program) -> int:
    """Return what dot products of columns take, and the coefficients that come from them."""
    dots = [node for level in program.levels for node in level if isinstance(node, ColumnDot)]
    parts = [step.what for step in program.final.instructions]
    items = [node for node in parts if isinstance(node, ColumnItem)]
    return sum(BYTES_PER_COLUMN * node.width for node in dots) + sum(
        4 * node.of.width for node in items
    )


def fit_settings(
    plan: Plan, memory: int | None, threads: int | None = None
) -> tuple[Settings, MemoryEstimate]:
    """Return the fastest settings whose memory stays within a budget.

    Args:
        plan: What is to be run.
        memory: Most bytes to hold beyond the bare interpreter, or None for no limit.
        threads: Worker threads; the number of processors if left out. Fewer where the budget
            asks for it.

    Raises:
        MemoryBudgetError: not even one thread with the smallest tile stays within the budget.
    """
    wanted = threads or default_threads()
    settings = Settings(wanted, DEFAULT_TILE, DEFAULT_TILE * CHUNK_TILES)
    found = estimate(plan, settings)
    while memory is not None and found.peak_bytes > memory:
        if settings.tile > DEFAULT_TILE // 4:
            settings = replace(settings, tile=settings.tile // 2)
        elif settings.room:
            settings = replace(settings, room=0)
        elif settings.threads > 1:
            settings = replace(settings, threads=settings.threads - 1)
        elif settings.tile > _SMALLEST_TILE:
            settings = replace(settings, tile=settings.tile // 2)
        else:
            raise MemoryBudgetError(
                Problem(
                    f"needs {format_size(found.peak_bytes)} of memory, more than the "
                    f"{format_size(memory)} allowed",
                    where=found.largest,
                    hint=f"allow at least --memory {-(-found.peak_bytes // 10**6)}MB",
                )
            )
        found = estimate(plan, settings)
    return settings, found
