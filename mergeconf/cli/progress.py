"""Progress of a run: a bar on a terminal, a plain line a minute elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mergeconf.execution.observer import Observer, Silent
from mergeconf.units import format_seconds, format_size

LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Observer]:
    """Show progress on standard error while the block runs."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with _Bar() as bar:
            yield bar
    else:
        yield _Lines()


class _Bar(Silent):
    """A bar with bytes, rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("merging", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, total_bytes: int, done_bytes: int) -> None:
        self._progress.update(self._task, total=total_bytes, completed=done_bytes)

    def advanced(self, output_bytes: int) -> None:
        self._progress.advance(self._task, output_bytes)

    def syncing(self) -> None:
        self._progress.update(self._task, description="waiting for the disk")


class _Lines(Silent):
    """A line a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._done = self._first = 0
        self._begun = self._last = time.monotonic()

    def started(self, total_bytes: int, done_bytes: int) -> None:
        self._total, self._done, self._first = total_bytes, done_bytes, done_bytes
        self._begun = self._last = time.monotonic()

    def advanced(self, output_bytes: int) -> None:
        with self._lock:
            self._done += output_bytes
            now = time.monotonic()
            if now - self._last < LINE_EVERY:
                return
            self._last = now
        rate = (self._done - self._first) / (now - self._begun)
        left = (self._total - self._done) / rate if rate else 0
        print(
            f"{self._done / max(self._total, 1):.0%}: {format_size(self._done)} of "
            f"{format_size(self._total)}, {format_size(rate)}/s, {format_seconds(left)} left",
            file=sys.stderr,
            flush=True,
        )
