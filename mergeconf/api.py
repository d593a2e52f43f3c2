"""The typed Python interface: the same verbs as the command line.

    recipe = load_recipe("recipe.yaml")
    plan = make_plan(recipe)
    report = run_plan(plan, "merged")

`merge` does all three. Every error is a `MergeconfError`.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeconf.checkpoint import ReadFiles
from mergeconf.errors import Interrupted, Problem
from mergeconf.execution.local import LocalExecutor, Settings
from mergeconf.execution.memory import MemoryEstimate, fit_settings
from mergeconf.execution.observer import Observer, Silent
from mergeconf.execution.rounding import Rounding, by_module
from mergeconf.graph.describe import describe
from mergeconf.graph.nodes import Agreed
from mergeconf.lock import NAME as LOCK_NAME
from mergeconf.lock import Lock, Verified, read_lock, verify_files
from mergeconf.lock.again import check_files, check_inputs, check_outputs, check_plan, recipe_of
from mergeconf.lock.cache import DigestCache, NoCache
from mergeconf.lock.comparison import Comparison
from mergeconf.lock.make import make_lock
from mergeconf.lock.record import InputDigests, Recorder
from mergeconf.lock.reuse import copy_same, is_whole, lock_at, refuse_foreign, same_tensors
from mergeconf.plan import Plan, TensorPlan, make_plan
from mergeconf.recipe import Recipe, load_recipe
from mergeconf.storage.output import OutputWriter
from mergeconf.version import VERSION

__all__ = [
    "RunReport",
    "load_recipe",
    "make_plan",
    "merge",
    "plan_lock",
    "run_lock",
    "run_plan",
    "verify",
]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did."""

    target: Path
    """The output folder."""
    seconds: float
    """Wall time."""
    bytes_read: int
    """Bytes of weights read, every pass counted."""
    bytes_written: int
    """Bytes of weights written by this run."""
    resumed: int
    """Tensors that an earlier, interrupted run had finished."""
    peak_bytes: int
    """Largest resident size of the process so far, in bytes, interpreter included."""
    planned_bytes: int
    """Bound that the plan gave for what the run holds beyond the bare interpreter, in bytes."""
    settings: Settings
    lock: Lock
    """What identifies the result, as it was written beside it."""
    reused: int
    """Tensors whose bytes came from the output that was there before."""
    unchanged: bool
    """Whether the output was there already, so that nothing was done."""
    rounding: Mapping[str, Rounding]
    """What rounding to the output's format has done, by group of modules; on a sample of the
    tensors that this run computed and rounded."""
    counts: Mapping[str, int]
    """What methods have counted; `NAME:of` is the number of elements looked at for `NAME`."""

    def share(self, name: str) -> float | None:
        """Return the share of elements for which a mask was true, or None if none was counted."""
        of = self.counts.get(f"{name}:of", 0)
        return self.counts.get(name, 0) / of if of else None


def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    memory: int | None = None,
    threads: int | None = None,
    force: bool = False,
    update: bool = False,
    observer: Observer | None = None,
    cache: Path | None = None,
) -> RunReport:
    """Load a recipe, plan it and run it; see `run_plan`."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return run_plan(
        make_plan(loaded), out, memory=memory, threads=threads, force=force, update=update,
        observer=observer, cache=cache,
    )  # fmt: skip


def run_lock(
    path: str | Path,
    out: str | Path,
    *,
    memory: int | None = None,
    threads: int | None = None,
    force: bool = False,
    observer: Observer | None = None,
    cache: Path | None = None,
) -> RunReport:
    """Run again exactly what a lock says; see `run_plan`.

    Raises:
        LockError: the lock is damaged, an input is no longer the same, or the result is not.
    """
    plan, lock = plan_lock(path)
    return run_plan(
        plan, out, memory=memory, threads=threads, force=force, observer=observer, lock=lock,
        cache=cache,
    )  # fmt: skip


def plan_lock(path: str | Path) -> tuple[Plan, Lock]:
    """Return the plan of what a lock says, and the lock; reads no weights.

    Raises:
        LockError: the lock is damaged, or an input's files cannot be those it speaks of.
    """
    lock = read_lock(Path(path))
    check_files(lock, Path(path))
    return make_plan(recipe_of(lock, Path(path))), lock


def verify(folder: str | Path, *, recompute: int | None = 0) -> Verified:
    """Compare an output with its lock: every tensor's bytes and every small file.

    Args:
        folder: The output.
        recompute: How many tensors to compute again from the inputs, or None for all.

    Raises:
        LockError: there is no sound lock, or the inputs are no longer those it speaks of.
        CheckpointError: an input is damaged or missing.
    """
    found = verify_files(Path(folder))
    if recompute == 0 or found.problems:
        return found
    return _recompute(Path(folder), found, recompute)


def _recompute(folder: Path, found: Verified, count: int | None) -> Verified:
    """Compute tensors again and compare them with what the output holds, byte for byte."""
    lock = found.lock
    plan, _ = plan_lock(folder / LOCK_NAME)
    # which ones is left to the digests: nobody can choose, and the same are looked at each time
    order = sorted(plan.tensors, key=lambda tensor: lock.tensors[tensor.name].made_by)
    chosen = order[:count]
    settings, _ = fit_settings(plan, None)
    with ReadFiles() as again:
        inputs = InputDigests(again, NoCache())
        inputs.take(stored for tensor in chosen for stored in tensor.inputs)
        check_inputs(lock, plan, inputs.found)
        with ReadFiles() as reads, Comparison(folder) as comparison:
            executor = LocalExecutor(reads, comparison, Silent(), settings, plan.recipe.seed)
            executor.run(chosen)
    problems = (*found.problems, *comparison.problems())
    return replace(found, recomputed=len(chosen), problems=problems)


def run_plan(
    plan: Plan,
    out: str | Path,
    *,
    memory: int | None = None,
    threads: int | None = None,
    force: bool = False,
    update: bool = False,
    observer: Observer | None = None,
    cache: Path | None = None,
    lock: Lock | None = None,
) -> RunReport:
    """Run a plan and write the merged model, with the lock that identifies it.

    The output appears at once, complete, or not at all. A run that was stopped continues where it
    was when the same plan is run again, and gives the same bytes. Where the output of the same
    plan and inputs is there already nothing is done.

    Args:
        plan: What to do.
        out: Folder to write.
        memory: Most bytes to hold beyond the bare interpreter, or None.
        threads: Worker threads; the number of processors if left out.
        force: Whether a model that is already there may be replaced.
        update: Whether one that mergeconf has made may be replaced; tensors that would be made
            the same way are copied from it.
        observer: Told about progress.
        lock: What inputs and output have to be.
        cache: Folder for digests of inputs, so that files which have not changed are not looked
            at again; None for none.

    Raises:
        MemoryBudgetError: the plan does not fit into `memory`.
        OutputError: the output cannot be written.
        CheckpointError: an input is damaged or was changed.
        ExecutionError: the result is not finite, or whole numbers differ between models.
        LockError: inputs or output are not those of `lock`.
        Interrupted: the user interrupted the run; what is finished is kept.
    """
    settings, estimate = fit_settings(plan, memory, threads)
    run = _Run(plan, Path(out), settings, estimate, observer or Silent(), cache)
    try:
        return run.run(force=force, update=update, expected=lock)
    except KeyboardInterrupt:
        raise Interrupted(
            Problem("interrupted", hint="run the same command again to continue")
        ) from None
    finally:
        run.cache.save()


class _Run:
    """One run, from looking at what is there to the report."""

    def __init__(
        self, plan: Plan, out: Path, settings: Settings, estimate: MemoryEstimate,
        observer: Observer, cache: Path | None,
    ) -> None:  # fmt: skip
        self.plan, self.out, self.settings, self.estimate = plan, out, settings, estimate
        self.observer = observer
        self.cache = NoCache() if cache is None else DigestCache(cache)
        self._begun = time.perf_counter()
        self._reused = 0

    def run(self, *, force: bool, update: bool, expected: Lock | None) -> RunReport:
        """Do what is to be done."""
        plan = self.plan
        old = lock_at(self.out)
        if update and old is None and self.out.exists():
            raise refuse_foreign(self.out)
        # what is hashed has been read for the merge just before: that is no reading of its own
        with ReadFiles() as again:
            inputs = InputDigests(again, self.cache)
            if old is not None or expected is not None:
                inputs.take(stored for tensor in plan.tensors for stored in tensor.inputs)
            if expected is not None:
                check_inputs(expected, plan, inputs.found)
                check_plan(expected, plan, inputs.found)
            same = frozenset() if old is None else same_tensors(plan, old, inputs.found)
            if old is not None and not force and is_whole(plan, old, self.out, same):
                return self._report(Path(self.out), old, 0, 0, 0)
            extra = sum(
                len(item) if isinstance(item, bytes) else item.stat().st_size
                for item in plan.sidecars.values()
            )
            with (
                OutputWriter(
                    self.out, plan.layout, fingerprint(plan), force=force or update,
                    inputs=[checkpoint.folder for checkpoint in plan.checkpoints],
                    extra_bytes=extra,
                ) as writer,
                ReadFiles() as reads,
            ):  # fmt: skip
                recorder = Recorder(plan, writer, inputs)
                copied = update and old is not None
                if copied:
                    assert old is not None
                    found = copy_same(self.out, old, same, writer, inputs, recorder.outputs)
                    self._reused = found
                return self._execute(writer, reads, recorder, inputs, expected)

    def _execute(
        self, writer: OutputWriter, reads: ReadFiles, recorder: Recorder, inputs: InputDigests,
        expected: Lock | None,
    ) -> RunReport:  # fmt: skip
        plan = self.plan
        there = writer.finished | recorder.outputs.keys()
        todo = [tensor for tensor in plan.tensors if tensor.name not in there]
        done_bytes = plan.output_bytes - sum(tensor.nbytes for tensor in todo)
        self.observer.started(plan.output_bytes, done_bytes)
        executor = LocalExecutor(reads, recorder, self.observer, self.settings, plan.recipe.seed)
        executor.run(_in_order(todo))
        self.observer.syncing()
        recorder.complete()
        if expected is not None:
            check_outputs(expected, recorder.outputs)
        lock = make_lock(plan, inputs.found, recorder.outputs, writer.target)
        target = writer.commit({**plan.sidecars, LOCK_NAME: lock.text().encode()})
        written = plan.output_bytes - done_bytes
        resumed = len(writer.finished)
        return self._report(target, lock, reads.bytes_read, written, resumed, executor)

    def _report(
        self, target: Path, lock: Lock, read: int, written: int, resumed: int,
        executor: LocalExecutor | None = None,
    ) -> RunReport:  # fmt: skip
        return RunReport(
            target=target,
            seconds=time.perf_counter() - self._begun,
            bytes_read=read,
            bytes_written=written,
            resumed=resumed,
            peak_bytes=_peak_bytes(),
            planned_bytes=self.estimate.peak_bytes,
            settings=self.settings,
            lock=lock,
            reused=self._reused,
            unchanged=not (written or resumed or self._reused),
            rounding=by_module(self.plan.tensors, executor.rounding) if executor else {},
            counts=Counter(executor.counts) if executor else Counter(),
        )


def fingerprint(plan: Plan) -> str:
    """Return the identity of a plan and its inputs: what decides every byte of the weights."""
    digest = hashlib.sha256()
    texts: dict[int, bytes] = {}

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode())

    add("mergeconf", VERSION, plan.recipe.seed)
    add([(str(read.folder.resolve()), read.fingerprint) for read in plan.checkpoints])
    add([(file.name, hashlib.sha256(file.header).hexdigest()) for file in plan.layout.files])
    for tensor in plan.tensors:
        key = id(tensor.expression)
        if key not in texts:
            texts[key] = hashlib.sha256("\n".join(describe(tensor.expression)).encode()).digest()
        digest.update(texts[key])
        add(tensor.name, [(s.file.name, s.offset, s.nbytes) for s in tensor.inputs], tensor.labels)
        if tensor.origins:
            add(tensor.origins)
    return digest.hexdigest()


def _in_order(tensors: list[TensorPlan]) -> list[TensorPlan]:
    """Return tensors with those first whose inputs have to agree: they may end the run."""
    return sorted(tensors, key=lambda tensor: not isinstance(tensor.expression, Agreed))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
