"""The local executor: threads that compute tiles, within a stated memory.

Tensors are worked on in the order of the output; each is cut into pieces of work that any thread
may take, so that one large tensor keeps all cores busy. A tensor's sweeps follow each other, and
a started tensor comes before a new one: its inputs are then still in the page cache.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mergeconf.checkpoint import ReadFiles
from mergeconf.errors import ExecutionError, Problem
from mergeconf.execution import kernels, rounding
from mergeconf.execution.kept import ROOM, Keepable
from mergeconf.execution.kernels import Array
from mergeconf.execution.observer import Observer
from mergeconf.execution.row_tiles import fill_columns, fill_gathered, fill_row_mask
from mergeconf.execution.tensor_run import Sweep, TensorRun
from mergeconf.execution.workspace import Workspace
from mergeconf.graph.geometry import BLOCK
from mergeconf.graph.nodes import Expanded, Gather, OfRows, Random, RowMask
from mergeconf.graph.random import fill_draws
from mergeconf.plan import TensorPlan

DEFAULT_TILE = 4 * BLOCK
"""Elements. Large enough that threads seldom wait for each other in the interpreter, and still
within the L3 cache (measured with two threads, ns an element of `linear` over three models: 2.0
with 65,536, 1.3 with 131,072, 1.05 with this and with more)."""
CHUNK_TILES = 4
"""Tiles in a piece of work: large enough that taking one costs nothing beside it."""


_WORTH_FETCHING = 1 << 18
"""Tensors of fewer bytes are not fetched ahead: the system's own reading ahead is enough."""
_MOST_FETCHED = 1 << 26
"""Bytes of an input that are fetched ahead."""


class Sink(Protocol):
    """Where output tensors go; thread-safe."""

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        """Take bytes of a tensor, at an offset in it."""

    def finish(self, name: str) -> None:
        """Know that all bytes of a tensor have been written."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is computed; nothing here changes a bit of the result."""

    threads: int = 2
    """Worker threads."""
    tile: int = DEFAULT_TILE
    """Elements computed at a time; sweeps that need whole blocks or rows adapt it."""
    chunk: int = DEFAULT_TILE * CHUNK_TILES
    """Elements in a piece of work, about."""
    room: int = ROOM
    """Bytes that a tensor may keep from sweep to sweep, so as not to compute them again."""


class LocalExecutor:
    """Computes output tensors with threads."""

    def __init__(
        self, reads: ReadFiles, sink: Sink, observer: Observer, settings: Settings, seed: int
    ) -> None:
        self.reads, self.sink, self.observer = reads, sink, observer
        self.settings, self.seed = settings, seed
        self.counts: Counter[str] = Counter()
        """What `Observe` nodes have counted, by name."""
        self.rounding: dict[str, rounding.Rounding] = {}
        """What rounding has done to each tensor that was computed and rounded."""
        self._waiting: deque[TensorPlan] = deque()
        self._ready: deque[tuple[TensorRun, Sweep, int, int]] = deque()
        self._running = 0
        self._condition = threading.Condition()
        self._failure: BaseException | None = None
        self._stopped = False

    def run(self, tensors: Sequence[TensorPlan]) -> None:
        """Compute tensors and hand them to the sink.

        Raises:
            MergeconfError: reading, computing or writing failed; the first failure is raised.
            KeyboardInterrupt: the user interrupted; threads have ended.
        """
        self._waiting.extend(tensors)
        workers = [_Worker(self, index) for index in range(self.settings.threads)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                # join with a time limit lets signals through on every platform
                while worker.is_alive():
                    worker.join(0.2)
        except BaseException:
            self.stop()
            for worker in workers:
                worker.join()
            raise
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let threads end after the tile at hand."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether threads are to end."""
        return self._stopped

    def fail(self, failure: BaseException) -> None:
        """Remember the first failure and stop."""
        with self._condition:
            if self._failure is None:
                self._failure = failure
        self.stop()

    def take(self) -> tuple[TensorRun, Sweep, int, int] | None:
        """Return a piece of work, waiting for one; None when there is nothing left."""
        while True:
            with self._condition:
                while True:
                    if self._stopped:
                        return None
                    if self._ready:
                        return self._ready.popleft()
                    if self._waiting:
                        plan = self._waiting.popleft()
                        self._running += 1
                        following = self._waiting[0] if self._waiting else None
                        break
                    if self._running == 0:
                        return None
                    self._condition.wait()
            if following is not None:
                self._read_ahead(following)
            run = TensorRun(plan, self.seed, self.settings.chunk, self.settings.room)
            run.open(self.reads)
            self.advance(run)

    def _read_ahead(self, plan: TensorPlan) -> None:
        """Let the system fetch the next tensor's inputs while this one is computed."""
        for stored in plan.inputs:
            if stored.nbytes >= _WORTH_FETCHING:
                self.reads.advise(stored, 0, _MOST_FETCHED)

    def advance(self, run: TensorRun) -> None:
        """Put the next sweep's pieces at the head of the queue, or finish the tensor."""
        sweep = run.next_sweep()
        while sweep is not None and not sweep.ranges:
            sweep = run.next_sweep()
        if sweep is None:
            run.close()
            self.rounding[run.plan.name] = run.rounding
            self.sink.finish(run.plan.name)
            self.observer.finished_tensor(run.plan.name)
            with self._condition:
                self._running -= 1
                if self._running == 0:
                    self._condition.notify_all()
            return
        with self._condition:
            self._ready.extendleft(
                (run, sweep, start, count) for start, count in reversed(sweep.ranges)
            )
            if len(sweep.ranges) > 1:
                self._condition.notify_all()

    def merge_counts(self, counts: Counter[str]) -> None:
        """Add what one thread has counted."""
        with self._condition:
            self.counts.update(counts)


def _bytes_of(view: Array) -> memoryview:
    return view.view(np.uint8).data


class _Worker(threading.Thread):
    """One thread: takes pieces of work and computes their tiles. See `Surroundings`."""

    def __init__(self, executor: LocalExecutor, index: int) -> None:
        super().__init__(name=f"mergeconf-{index}", daemon=True)
        self._executor = executor
        self._read: Callable[..., None] = executor.reads.read_into
        self._workspace = Workspace(self)
        self._counts: Counter[str] = Counter()
        self._run: TensorRun
        self._sweep: Sweep
        self._start = 0
        self._size = 0
        self._suspect = False
        self._exact: Array | None = None
        """The tile's result before it is rounded, until it is stored."""

    def run(self) -> None:
        """Work until there is nothing left."""
        executor = self._executor
        try:
            with np.errstate(all="ignore"):
                while (piece := executor.take()) is not None:
                    run, sweep, start, count = piece
                    self._compute(run, sweep, start, count)
                    if executor.stopped:
                        break
                    with run.lock:
                        run.pending -= 1
                        done = run.pending == 0
                    if done:
                        executor.advance(run)
        except BaseException as failure:
            executor.fail(failure)
        finally:
            executor.merge_counts(self._counts)

    def _compute(self, run: TensorRun, sweep: Sweep, start: int, count: int) -> None:
        self._run, self._sweep = run, sweep
        tile = run.tile_of(self._executor.settings.tile, sweep.kind)
        for begin in range(start, start + count, tile):
            if self._executor.stopped:
                return
            self._start, self._size = begin, min(tile, start + count - begin)
            bound = self._workspace.bind(sweep.tape, self._size)
            bound.set_scalars(sweep.scalars)
            bound.run()

    # --- what tapes call ----------------------------------------------------------------------

    def load(self, slot: int, view: Array) -> None:
        """Read a tile of an input."""
        stored = self._run.plan.inputs[slot]
        self._read(stored, self._start * stored.dtype.itemsize, _bytes_of(view))

    def draw(self, node: Random, view: Array) -> None:
        """Draw random integers for the tile."""
        fill_draws(self._run.keys[node], self._start, view)

    def expand(self, node: Expanded, view: Array) -> None:
        """Compute a tile from inputs that are kept whole."""
        assert self._run.whole is not None
        self._run.whole.fill(node, self._start, view)

    def rows(self, node: OfRows, view: Array) -> None:
        """Fill a tile row by row."""
        if isinstance(node, Gather):
            stored = self._run.plan.inputs[node.x.slot]
            fill_gathered(node, stored, self._start, view, self._read)
        elif isinstance(node, RowMask):
            fill_row_mask(node, self._start, view)
        else:
            fill_columns(self._run.columns_of(node), self._start, view)

    def recall(self, node: Keepable, view: Array) -> None:
        """Fill a tile with what an earlier sweep has kept."""
        assert self._run.kept is not None
        self._run.kept.get(node, self._start, view)

    def keep(self, node: Keepable, view: Array) -> None:
        """Keep a tile for later sweeps."""
        assert self._run.kept is not None
        self._run.kept.put(node, self._start, view)

    def reduce(self, index: int, view: Array) -> None:
        """Feed a reduction, or take part of a sample for it."""
        reducer = self._sweep.reducers[index]
        if self._sweep.kind == "sample":
            reducer.take_sample(view[: self._size])  # type: ignore[attr-defined]
        else:
            reducer.update(self._start, view, self._size)

    def count(self, name: str, view: Array) -> None:
        """Count a mask."""
        self._counts[name] += int(np.count_nonzero(view))
        self._counts[f"{name}:of"] += len(view)

    def check(self, limit: int, view: Array) -> None:
        """Look for what the output's format cannot hold; give NaN one form."""
        self._exact = view
        self._suspect = kernels.is_suspect(view, limit)
        if self._suspect:
            kernels.settle_nan(view)

    def refuse(self, what: None, view: Array) -> None:
        """Fail where whole numbers differ between the models."""
        if view.any():
            plan = self._run.plan
            first = self._start + int(np.argmax(view))
            raise ExecutionError(
                Problem(
                    f"holds {plan.dtype} values, which cannot be merged, and the models differ "
                    f"in element {first}",
                    where=plan.name,
                    hint="decide it by a rule: take it from one model, or drop it",
                )
            )

    def store(self, view: Array) -> None:
        """Hand a tile of the output to the sink."""
        plan = self._run.plan
        if self._suspect:
            self._suspect = False
            self._blame(view)
        self._measure(view)
        size = plan.dtype.itemsize
        self._executor.sink.write(plan.name, self._start * size, _bytes_of(view))
        self._executor.observer.advanced(len(view) * size)

    def _measure(self, view: Array) -> None:
        """Measure on some tiles what rounding does to the result."""
        exact, self._exact = self._exact, None
        run = self._run
        part = rounding.measured_part(self._start, self._size)
        if exact is None or not part or not run.rounded:
            return
        base = None
        if run.base_slot is not None:
            stored = run.plan.inputs[run.base_slot]
            bits = np.empty(part, stored.dtype.numpy)
            self._read(stored, self._start * stored.dtype.itemsize, _bytes_of(bits))
            base = rounding.as_float32(bits, stored.dtype)
        values = exact[:part].view(np.float32)
        found = rounding.measure(values, view[:part], run.plan.dtype, base)
        with run.lock:
            run.rounding += found

    def _blame(self, view: Array) -> None:
        """Raise where the output is not finite though all inputs at that position are."""
        plan = self._run.plan
        bad = ~kernels.is_finite(view, plan.dtype)
        for slot in self._run.program.final.slots:
            stored = plan.inputs[slot]
            values = np.empty(self._size, stored.dtype.numpy)
            self.load(slot, values)
            bad &= kernels.is_finite(values, stored.dtype)
        for node in self._run.program.gathered:
            values = np.empty(self._size, node.dtype.numpy)
            self.rows(node, values)
            bad &= kernels.is_finite(values, node.dtype)
        if bad.any():
            first = self._start + int(np.argmax(bad))
            raise ExecutionError(
                Problem(
                    f"element {first} of the result is not a finite number in {plan.dtype}, "
                    "though all inputs there are",
                    where=plan.name,
                    hint="the weights are too large, an input holds NaN or infinity elsewhere in "
                    "this tensor, or out_dtype is too narrow",
                )
            )
