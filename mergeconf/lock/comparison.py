"""A place to write tensors to that only compares: are they what an output holds?"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from mergeconf.checkpoint import open_checkpoint
from mergeconf.errors import Problem
from mergeconf.storage.read_files import ReadFiles


class Comparison:
    """Takes an executor's tensors. Thread-safe; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._tensors = open_checkpoint(folder, str(folder)).tensors
        self._reads = ReadFiles()
        self._lock = threading.Lock()
        self._other: dict[str, int] = {}

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        """Compare bytes of a tensor, at an offset in it."""
        there = bytearray(buffer.nbytes)
        self._reads.read_into(self._tensors[name], offset, memoryview(there))
        if there != buffer.cast("B"):
            with self._lock:
                self._other[name] = min(offset, self._other.get(name, offset))

    def finish(self, name: str) -> None:
        """Know that all bytes of a tensor have been compared."""

    def problems(self) -> tuple[Problem, ...]:
        """Return a problem for each tensor that is another."""
        return tuple(
            Problem("computed again from the inputs, it has other bits", where=name)
            for name in sorted(self._other)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reads.close()
