"""Measure mergeconf's speed and memory beside the floor and mergekit, on the same work.

`python -m benchmarks.speed --size 0.1` makes models, then runs, in turn and several times for each
method: the floor (`cat` of the inputs to nowhere, then a plain write and sync of as many bytes as
the output), `mergeconf run` as a whole process, and mergekit where its place is given. Every
output is checked before its time counts. Prints a Markdown table; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import (
    OtherWork,
    added,
    drop_from_cache,
    read_measured,
    run_measured,
    write_measured,
)
from benchmarks.model_job import (
    Job,
    add_model_arguments,
    already_made,
    job_arguments,
    job_from,
    model_bytes,
)
from benchmarks.outputs import output_problems, weight_files
from benchmarks.speed_recipes import RECIPES, recipe_models, recipe_text
from benchmarks.speed_report import (
    FLOOR,
    FLOOR_READ,
    FLOOR_WRITE,
    MERGECONF,
    MERGEKIT,
    MERGEKIT_START,
    TORCH_START,
    Run,
    markdown_report,
    summarize,
)

QUIET_HUB = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Added to every process's environment: no measurement waits for a network."""


COLD = "dropped from the page cache before each run"
WARM = "warm in the page cache (read once before each run)"
UNTOUCHED = "too large for the page cache, which was left as it was"


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that stays the same during the measurement."""

    work: Path
    """Where recipes, outputs and logs go."""
    models: Path
    """The folder that holds `base`, `ft1` and so on."""
    job: Job
    """What the models are."""
    mergeconf: tuple[str, ...]
    """The command that is `mergeconf`."""
    mergekit: tuple[str, ...]
    """The command that is `mergekit-yaml`, with its options; empty: not measured."""
    dtype: str
    """The recipes' `dtype`."""
    cache: str
    """What is done about the page cache before each run: one of the three above."""
    settle_s: float
    """Seconds of rest before each run."""

    def inputs(self, method: str) -> list[Path]:
        """Return all weight files that a recipe reads."""
        names = recipe_models(RECIPES[method], self.job.fine_tunes)
        return [path for name in names for path in weight_files(self.models / name)]

    def write_recipe(self, method: str) -> Path:
        """Write a method's recipe; return its path."""
        path = self.work / f"{method}.yaml"
        text = recipe_text(method, self.models, self.job.fine_tunes, self.dtype)
        path.write_text(text, encoding="utf-8")
        return path


def settle(bench: Bench, inputs: Sequence[Path]) -> None:
    """Bring disk and page cache to the same state before each run.

    A virtual machine with free page reporting hands memory that is free for two seconds back to its
    host and takes it again at 2 s a GB (measured on one such); so memory that the run before has
    just freed would make the next one look fast, and all rest equally long instead. Such machines
    forget cached files too, so that the inputs are read again each time.
    """
    os.sync()
    time.sleep(bench.settle_s)
    if bench.cache == COLD:
        drop_from_cache(inputs)
    elif bench.cache == WARM:
        read_measured(inputs)


def run_tool(bench: Bench, tool: str, method: str, number: int) -> Run:
    """Run one tool once on one method's recipe, check what it wrote and remove it."""
    output, log = bench.work / f"out-{tool}", bench.work / f"{method}-{tool}.log"
    recipe = str(bench.write_recipe(method))
    if tool == MERGECONF:
        command = [*bench.mergeconf, "run", recipe, "-o", str(output), "--force", "--quiet"]
    else:
        command = [bench.mergekit[0], *bench.mergekit[1:], recipe, str(output)]
    settle(bench, bench.inputs(method))
    others = OtherWork()
    try:
        measured = run_measured(command, log, QUIET_HUB)
        other_cores = others.cores(measured)
        problems = [f"exit code {measured.exit_code}"] if measured.exit_code else []
        problems = problems or output_problems(output, bench.models / "base")
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return Run(number, method, tool, measured, other_cores, tuple(problems))


def run_floor(bench: Bench, method: str, number: int) -> list[Run]:
    """Measure the floor of one method's recipe: `cat` of its inputs, one model written, the sum.

    One after the other, as a program that does one thing at a time would.
    """
    inputs, output = bench.inputs(method), bench.work / "floor"
    settle(bench, inputs)
    others = OtherWork()
    read = read_measured(inputs)
    try:
        write = write_measured(output, model_bytes(bench.job.size))
        total = added(read, write)
        cores = others.cores(total)
    finally:
        output.unlink(missing_ok=True)
    parts = {FLOOR_READ: read, FLOOR_WRITE: write, FLOOR: total}
    return [Run(number, method, tool, part, cores) for tool, part in parts.items()]


def run_start(command: Sequence[str], tool: str, number: int) -> Run:
    """Measure a process that only starts up."""
    others = OtherWork()
    measured = run_measured(command, None, QUIET_HUB)
    problems = (f"exit code {measured.exit_code}",) if measured.exit_code else ()
    return Run(number, "", tool, measured, others.cores(measured), problems)


def tell(run: Run, log: Path | None = None) -> None:
    """Print one run's outcome, and the end of its log where it failed."""
    took = run.measurement
    name = f"round {run.round} {run.method or '-'} {run.tool}"
    print(f"{name}: {took.wall_s:.2f} s wall, {took.cpu_s:.2f} s CPU", file=sys.stderr)
    for problem in run.problems[:5]:
        print(f"  {problem}", file=sys.stderr)
    if run.problems and log is not None and log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(f"  | {line}" for line in lines[-15:]), file=sys.stderr)


def run_round(
    bench: Bench, methods: Sequence[str], number: int, with_mergekit: bool, runs: list[Run]
) -> None:
    """Run every tool on every method once; a tool that failed on a method is left out later."""

    def keep(run: Run) -> None:
        runs.append(run)
        tell(run, bench.work / f"{run.method}-{run.tool}.log")

    keep(run_start([sys.executable, "-c", "import torch"], TORCH_START, number))
    if with_mergekit:
        keep(run_start([bench.mergekit[0], *bench.mergekit[1:], "--help"], MERGEKIT_START, number))
    failed = {(run.method, run.tool) for run in runs if run.problems}
    for method in methods:
        for run in run_floor(bench, method, number):
            keep(run)
        if (method, MERGECONF) not in failed:
            keep(run_tool(bench, MERGECONF, method, number))
        wanted = with_mergekit and RECIPES[method].mergekit
        if wanted and (method, MERGEKIT) not in failed:
            keep(run_tool(bench, MERGEKIT, method, number))


def prepare(bench: Bench) -> None:
    """Make the models where they are not there yet."""
    bench.work.mkdir(parents=True, exist_ok=True)
    needed = model_bytes(bench.job.size)
    made = already_made(bench.job, bench.models)
    wanted = needed if made else needed * (bench.job.fine_tunes + 2)
    free = shutil.disk_usage(bench.work).free
    if free < wanted * 1.05:
        raise SystemExit(f"{bench.work}: {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB needed")
    if not made:
        module = [sys.executable, "-m", "benchmarks.make_models"]
        command = [*module, *job_arguments(bench.job), str(bench.models)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    run_measured([sys.executable, "-c", "import torch"])


def cache_state(job: Job) -> str:
    """Return WARM where all models and an output fit into half of the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = model_bytes(job.size) * (job.fine_tunes + 2) < memory / 2
    return WARM if fits else UNTOUCHED


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--methods",
        default=",".join(RECIPES),
        help=f"comma-separated, of: {', '.join(RECIPES)} (all)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all runs (5)")
    parser.add_argument(
        "--mergeconf",
        default=f"{shlex.quote(sys.executable)} -m mergeconf",
        help="the command that is mergeconf (this Python, -m mergeconf)",
    )
    parser.add_argument("--mergekit-bin", type=Path, help="mergekit-yaml of mergekit's environment")
    parser.add_argument("--mergekit-python", type=Path, help="or that environment's Python")
    parser.add_argument("--mergekit-args", default="", help="more options for mergekit-yaml")
    parser.add_argument("--mergekit-rounds", type=int, default=1, help="rounds with mergekit (1)")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="the recipes' dtype"
    )
    parser.add_argument("--cold", action="store_true", help="drop inputs from the page cache")
    parser.add_argument(
        "--settle", type=float, default=5.0, metavar="SECONDS", help="rest before each run (5)"
    )
    parser.add_argument("--work", type=Path, help="folder for models and outputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    args = parser.parse_args(arguments)
    args.methods = [name for name in args.methods.split(",") if name]
    unknown = [name for name in args.methods if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe for: {', '.join(unknown)}; there are: {', '.join(RECIPES)}")
    return args


def bench_from(args: argparse.Namespace) -> Bench:
    """Return what the command line asks to measure."""
    work = (args.work or Path(tempfile.gettempdir()) / "mergeconf-bench").resolve()
    mergekit: list[str] = []
    if args.mergekit_bin:
        mergekit = [str(args.mergekit_bin)]
    elif args.mergekit_python:
        mergekit = [str(args.mergekit_python), "-m", "mergekit.scripts.run_yaml"]
    if mergekit:
        mergekit += ["--quiet", "--no-copy-tokenizer", *shlex.split(args.mergekit_args)]
    job = job_from(args)
    return Bench(
        work=work,
        models=work / f"models-{job.size}B-{job.fine_tunes}",
        job=job,
        mergeconf=tuple(shlex.split(args.mergeconf)),
        mergekit=tuple(mergekit),
        dtype=args.dtype,
        cache=COLD if args.cold else cache_state(job),
        settle_s=args.settle,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; 1 where a run failed."""
    args = parse_arguments(arguments)
    bench = bench_from(args)
    prepare(bench)
    runs: list[Run] = []
    try:
        for number in range(args.rounds):
            with_mergekit = bool(bench.mergekit) and number < args.mergekit_rounds
            run_round(bench, args.methods, number, with_mergekit, runs)
    except KeyboardInterrupt:
        print("interrupted: the table holds what was measured", file=sys.stderr)
    rows = summarize(runs)
    report = markdown_report(rows, bench.job, runs, bench.cache, bench.dtype)
    print(report)
    if args.markdown:
        args.markdown.write_text(report + "\n", encoding="utf-8")
    if args.json:
        figures = {
            "job": asdict(bench.job),
            "dtype": bench.dtype,
            "cache": bench.cache,
            "settle_s": bench.settle_s,
            "rows": [asdict(row) for row in rows],
            "runs": [asdict(run) for run in runs],
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"the models stay in {bench.models} for the next time", file=sys.stderr)
    return 1 if any(run.problems for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
