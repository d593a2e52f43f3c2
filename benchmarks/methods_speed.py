"""How much does each merge method compute? CPU nanoseconds an element, beside the floor.

`python -m benchmarks.methods_speed` makes models of 0.1 billion parameters (or takes those that
are there) and runs every recipe of `speed_recipes.py` in this process with one thread and an
output that is thrown away, so that start-up and the disk do not count. Beside each stands the
floor: `cat` of its inputs, measured, and the output at `--write-rate`; and how many times the
floor a run takes whose computing is shared out to `--threads` threads. CPU seconds say more than
the clock where other work runs beside; of several rounds the smallest counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import read_measured
from benchmarks.model_job import (
    BF16_BYTES,
    Job,
    add_model_arguments,
    already_made,
    job_arguments,
    job_from,
    model_bytes,
    parse_size,
)
from benchmarks.outputs import weight_files
from benchmarks.speed_recipes import RECIPES, recipe_models, recipe_text
from mergeconf import load_recipe, make_plan
from mergeconf.checkpoint import ReadFiles
from mergeconf.execution.local import LocalExecutor
from mergeconf.execution.memory import fit_settings
from mergeconf.execution.observer import Silent
from mergeconf.plan import Plan


class Nowhere:
    """Takes the output and forgets it."""

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        """Do nothing."""

    def finish(self, name: str) -> None:
        """Do nothing."""


def cpu_seconds(plan: Plan) -> float:
    """Run a plan with one thread and no output; return its CPU seconds."""
    settings, _ = fit_settings(plan, None, threads=1)
    with ReadFiles() as reads:
        executor = LocalExecutor(reads, Nowhere(), Silent(), settings, plan.recipe.seed)
        start = time.process_time()
        executor.run(plan.tensors)
        return time.process_time() - start


def read_seconds(models: Path, job: Job, name: str) -> float:
    """Return the wall seconds of `cat` of a recipe's inputs."""
    names = recipe_models(RECIPES[name], job.fine_tunes)
    return read_measured([path for model in names for path in weight_files(models / model)]).wall_s


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods_speed", description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--methods", default=",".join(RECIPES), help="comma-separated (all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all runs (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the last column (2)")
    parser.add_argument(
        "--write-rate", type=parse_size, default=10**9, metavar="SIZE",
        help="bytes that the disk takes in a second (1GB)",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="folder for models")
    args = parser.parse_args(arguments)
    args.methods = [name for name in args.methods.split(",") if name]
    unknown = [name for name in args.methods if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe for: {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    args = parse_arguments(arguments)
    job = job_from(args)
    work = (args.work or Path(tempfile.gettempdir()) / "mergeconf-bench").resolve()
    models = work / f"models-{job.size}B-{job.fine_tunes}"
    if not already_made(job, models):
        module = [sys.executable, "-m", "benchmarks.make_models"]
        subprocess.run([*module, *job_arguments(job), str(models)], check=True, stdout=sys.stderr)
    elements = model_bytes(job.size) // BF16_BYTES
    write_ns = BF16_BYTES / args.write_rate * 1e9
    recipe = work / "recipe.yaml"
    print(f"| recipe | models | CPU, ns an element | floor, ns an element | {args.threads} threads "
          "against the floor |\n|---|---|---|---|---|")  # fmt: skip
    for name in args.methods:
        recipe.write_text(recipe_text(name, models, job.fine_tunes, "float32"), encoding="utf-8")
        plan = make_plan(load_recipe(recipe))
        rounds = range(args.rounds)
        floor = write_ns + min(read_seconds(models, job, name) for _ in rounds) / elements * 1e9
        cpu = min(cpu_seconds(plan) for _ in rounds) / elements * 1e9
        read = len(recipe_models(RECIPES[name], job.fine_tunes))
        ratio = cpu / args.threads / floor
        print(f"| `{name}` | {read} | {cpu:.1f} | {floor:.1f} | {ratio:.1f}x |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
