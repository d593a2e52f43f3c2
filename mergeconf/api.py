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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeconf import __version__
from mergeconf.checkpoint import ReadFiles
from mergeconf.errors import Interrupted, Problem
from mergeconf.execution.local import LocalExecutor, Settings
from mergeconf.execution.memory import fit_settings
from mergeconf.execution.observer import Observer, Silent
from mergeconf.graph.describe import describe
from mergeconf.graph.nodes import Agreed
from mergeconf.plan import Plan, TensorPlan, make_plan
from mergeconf.recipe import Recipe, load_recipe
from mergeconf.storage.output import OutputWriter

__all__ = ["RunReport", "load_recipe", "make_plan", "merge", "run_plan"]


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
    observer: Observer | None = None,
) -> RunReport:
    """Load a recipe, plan it and run it; see `run_plan`."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return run_plan(
        make_plan(loaded), out, memory=memory, threads=threads, force=force, observer=observer
    )


def run_plan(
    plan: Plan,
    out: str | Path,
    *,
    memory: int | None = None,
    threads: int | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> RunReport:
    """Run a plan and write the merged model.

    The output appears at once, complete, or not at all. A run that was stopped continues where it
    was when the same plan is run again, and gives the same bytes.

    Args:
        plan: What to do.
        out: Folder to write.
        memory: Most bytes to hold beyond the bare interpreter, or None.
        threads: Worker threads; the number of processors if left out.
        force: Whether a model that is already there may be replaced.
        observer: Told about progress.

    Raises:
        MemoryBudgetError: the plan does not fit into `memory`.
        OutputError: the output cannot be written.
        CheckpointError: an input is damaged or was changed.
        ExecutionError: the result is not finite, or whole numbers differ between models.
        Interrupted: the user interrupted the run; what is finished is kept.
    """
    begun = time.perf_counter()
    settings, memory_estimate = fit_settings(plan, memory, threads)
    watcher = observer or Silent()
    inputs = [checkpoint.folder for checkpoint in plan.checkpoints]
    extra = sum(
        len(item) if isinstance(item, bytes) else item.stat().st_size
        for item in plan.sidecars.values()
    )
    try:
        with (
            OutputWriter(
                Path(out), plan.layout, fingerprint(plan), inputs=inputs, force=force,
                extra_bytes=extra,
            ) as writer,
            ReadFiles() as reads,
        ):  # fmt: skip
            todo = [tensor for tensor in plan.tensors if tensor.name not in writer.finished]
            done_bytes = plan.output_bytes - sum(tensor.nbytes for tensor in todo)
            watcher.started(plan.output_bytes, done_bytes)
            executor = LocalExecutor(reads, writer, watcher, settings, plan.recipe.seed)
            executor.run(_in_order(todo))
            watcher.syncing()
            target = writer.commit(plan.sidecars)
            bytes_read = reads.bytes_read
    except KeyboardInterrupt:
        raise Interrupted(
            Problem("interrupted", hint="run the same command again to continue")
        ) from None
    return RunReport(
        target=target,
        seconds=time.perf_counter() - begun,
        bytes_read=bytes_read,
        bytes_written=plan.output_bytes - done_bytes,
        resumed=len(plan.tensors) - len(todo),
        peak_bytes=_peak_bytes(),
        planned_bytes=memory_estimate.peak_bytes,
        settings=settings,
        counts=Counter(executor.counts),
    )


def fingerprint(plan: Plan) -> str:
    """Return the identity of a plan and its inputs: what decides every byte of the weights."""
    digest = hashlib.sha256()
    texts: dict[int, bytes] = {}

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode())

    add("mergeconf", __version__, plan.recipe.seed)
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
