"""From single runs to the table: medians, ranges, ratios to the floor and to mergekit."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import Measurement
from benchmarks.model_job import Job

FLOOR = "floor"
FLOOR_READ = "floor: cat"
FLOOR_WRITE = "floor: write"
MERGECONF = "mergeconf"
MERGEKIT = "mergekit"
TORCH_START = "import torch"
MERGEKIT_START = "mergekit --help"


BUSY_CORES = 0.25
"""Cores of other work from which the report warns; the kernel writing back takes up to 0.2."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one tool, or of the floor, on one method."""

    round: int
    """Number of the round, from 0; ratios pair runs of one round."""
    method: str
    """The merge method; empty for a start-up."""
    tool: str
    """One of the names above."""
    measurement: Measurement
    """What it took."""
    other_cores: float
    """Cores that other work kept busy meanwhile, on average."""
    problems: tuple[str, ...] = ()
    """What was wrong; a run with problems counts for nothing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of one figure over the rounds."""

    median: float
    """The middle, in the figure's unit."""
    low: float
    """The smallest."""
    high: float
    """The largest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: one tool on one method."""

    method: str
    """The merge method; empty for a start-up."""
    tool: str
    """Which tool, or the floor."""
    rounds: int
    """Runs that counted."""
    failed: bool
    """Whether a run failed."""
    wall_s: Spread | None = None
    """Seconds."""
    cpu_s: Spread | None = None
    """CPU seconds, user and system."""
    peak_rss_bytes: float | None = None
    """Median of the peak resident set."""
    peak_anonymous_bytes: float | None = None
    """Median of the peak without mapped file pages."""
    above_torch_bytes: float | None = None
    """`peak_rss_bytes` less that of an interpreter with torch loaded."""
    wall_to_floor: Spread | None = None
    """Wall over the floor's wall in the same round."""
    net_wall_to_floor: Spread | None = None
    """The same, less the time of the tool's start-up in the same round."""
    mergekit_wall: float | None = None
    """How many times mergekit's median wall this one's is shorter."""
    mergekit_cpu: float | None = None
    """The same of CPU seconds."""


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and range, or None of nothing."""
    return Spread(median(values), min(values), max(values)) if values else None


class Runs:
    """The runs that counted, to be asked by method, tool and round."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._good = [run for run in runs if not run.problems]

    def of(self, method: str, tool: str) -> list[Run]:
        """Return the runs of one tool on one method."""
        return [run for run in self._good if (run.method, run.tool) == (method, tool)]

    def values(self, method: str, tool: str, figure: Callable[[Measurement], float]) -> list[float]:
        """Return one figure of these runs."""
        return [figure(run.measurement) for run in self.of(method, tool)]

    def wall_by_round(self, method: str, tool: str) -> dict[int, float]:
        """Return the wall seconds by round."""
        return {run.round: run.measurement.wall_s for run in self.of(method, tool)}

    def to_floor(self, method: str, tool: str, start: str | None) -> Spread | None:
        """Return wall over the floor's, round by round, less the wall of the run `start`."""
        floor = self.wall_by_round(method, FLOOR)
        starts = self.wall_by_round("", start) if start else {}
        return spread(
            [
                (wall - starts.get(number, 0.0)) / floor[number]
                for number, wall in self.wall_by_round(method, tool).items()
                if number in floor and (start is None or number in starts)
            ]
        )

    def times_mergekit(self, method: str, figure: Callable[[Measurement], float]) -> float | None:
        """Return mergekit's median over mergeconf's."""
        ours, theirs = (self.values(method, tool, figure) for tool in (MERGECONF, MERGEKIT))
        return median(theirs) / median(ours) if ours and theirs else None


def make_row(runs: Runs, method: str, tool: str, failed: bool) -> Row:
    """Return one line of the table."""
    count = len(runs.of(method, tool))
    if not count:
        return Row(method, tool, 0, failed)
    rss = median(runs.values(method, tool, lambda m: m.peak_rss_bytes))
    torch_rss = runs.values("", TORCH_START, lambda m: m.peak_rss_bytes)
    merges = tool in (MERGECONF, MERGEKIT)
    start = TORCH_START if tool == MERGECONF else MERGEKIT_START
    ours = tool == MERGECONF
    return Row(
        method,
        tool,
        count,
        failed,
        wall_s=spread(runs.values(method, tool, lambda m: m.wall_s)),
        cpu_s=spread(runs.values(method, tool, lambda m: m.cpu_s)),
        peak_rss_bytes=rss if tool != FLOOR else None,
        peak_anonymous_bytes=median(runs.values(method, tool, lambda m: m.peak_anonymous_bytes))
        if tool != FLOOR
        else None,
        above_torch_bytes=rss - median(torch_rss) if merges and torch_rss else None,
        wall_to_floor=runs.to_floor(method, tool, None) if merges else None,
        net_wall_to_floor=runs.to_floor(method, tool, start) if merges else None,
        mergekit_wall=runs.times_mergekit(method, lambda m: m.wall_s) if ours else None,
        mergekit_cpu=runs.times_mergekit(method, lambda m: m.cpu_s) if ours else None,
    )


def summarize(runs: Sequence[Run]) -> list[Row]:
    """Return the table's lines: start-ups first, then method by method in the order they ran."""
    shown = [run for run in runs if run.tool not in (FLOOR_READ, FLOOR_WRITE)]
    order = list(dict.fromkeys((run.method, run.tool) for run in shown))
    methods = list(dict.fromkeys(method for method, _ in order))
    failed = {(run.method, run.tool) for run in runs if run.problems}
    good = Runs(runs)
    return [
        make_row(good, method, tool, (method, tool) in failed)
        for wanted in methods
        for method, tool in order
        if method == wanted
    ]


def show_spread(value: Spread | None, unit: str = "") -> str:
    """Return `median (low to high)`, or the median alone where there was one run."""
    if value is None:
        return ""
    middle = f"{value.median:.2f}{unit}"
    if value.low == value.high:
        return middle
    return f"{middle} ({value.low:.2f} to {value.high:.2f})"


def show_mb(value: float | None) -> str:
    """Return bytes as MB of 10^6."""
    return "" if value is None else f"{value / 1e6:.0f}"


def show_times(value: float | None) -> str:
    """Return a ratio."""
    return "" if value is None else f"{value:.1f}x"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.method or "start-up",
    "what": lambda row: row.tool + (" FAILED" if row.failed else ""),
    "rounds": lambda row: str(row.rounds),
    "wall s": lambda row: show_spread(row.wall_s),
    "CPU s": lambda row: show_spread(row.cpu_s),
    "peak MB": lambda row: show_mb(row.peak_rss_bytes),
    "anonymous MB": lambda row: show_mb(row.peak_anonymous_bytes),
    "above torch MB": lambda row: show_mb(row.above_torch_bytes),
    "wall / floor": lambda row: show_spread(row.wall_to_floor, "x"),
    "less start-up": lambda row: show_spread(row.net_wall_to_floor, "x"),
    "mergekit wall": lambda row: show_times(row.mergekit_wall),
    "mergekit CPU": lambda row: show_times(row.mergekit_cpu),
}
"""The table's columns: heading, and how a row fills it."""


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the table, its columns padded so that it reads well as plain text."""
    cells = [list(COLUMNS), *([show(row) for show in COLUMNS.values()] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine_line() -> str:
    """Return the processor, cores, memory and Python in words, without the machine's name."""
    processor = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{len(os.sched_getaffinity(0))} cores ({processor}), {memory:.0f} GB memory, "
        f"Python {platform.python_version()}"
    )


def markdown_report(
    rows: Sequence[Row], job: Job, runs: Sequence[Run], cache: str, dtype: str
) -> str:
    """Return the table with what a reader needs to know about it."""
    others = [run.other_cores for run in runs] or [0.0]
    warning = "; too busy for figures to rely on" if median(others) > BUSY_CORES else ""
    return "\n".join(
        [
            f"{job.size} B parameters, bfloat16, base and {job.fine_tunes} fine-tunes with "
            f"{job.unchanged:.0%} of elements unchanged, files of {job.shard_bytes / 1e6:.0f} MB; "
            f"recipes' dtype {dtype}; inputs {cache}.",
            f"{machine_line()}; other work took {median(others):.2f} cores (median; at most "
            f"{max(others):.2f}){warning}.",
            "",
            markdown_table(rows),
            "",
            "Median (smallest to largest) over the rounds. Floor: `cat` of the recipe's inputs to "
            "nowhere, then a plain write and sync of as many bytes as the output; ratios to it "
            "pair runs of one round. Less start-up: less the wall of the start-up row of the same "
            "round. Peak: resident set, mapped file pages included; anonymous: without them, "
            "sampled. Mergekit wall and CPU: mergekit's median over mergeconf's. mergekit does "
            "not sync what it writes; the floor does.",
        ]
    )
