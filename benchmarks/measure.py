"""Run one command as a process and measure it: wall clock, CPU seconds and peak memory.

Imports nothing big on purpose: Linux counts a child's memory before its `exec` (which is this
process's own) into `ru_maxrss`.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
"""Time between two looks at /proc."""

WRITE_PIECE = 4 << 20
"""Bytes of one write of the floor."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one process took."""

    wall_s: float
    """Seconds from before the start to after the end."""
    user_s: float
    """CPU seconds in user mode, of the process and the children it waited for."""
    sys_s: float
    """CPU seconds in the kernel, of the same."""
    peak_rss_bytes: int
    """`ru_maxrss`: the largest resident set of any one process, mapped file pages included."""
    peak_hwm_bytes: int
    """The last `VmHWM` seen in /proc/PID/status: the same for the main process alone, sampled."""
    peak_anonymous_bytes: int
    """The largest `RssAnon` seen, sampled: without mapped file pages."""
    exit_code: int
    """0, or how the process failed."""

    @property
    def cpu_s(self) -> float:
        """CPU seconds in all."""
        return self.user_s + self.sys_s


class MemorySampler:
    """Watches a process's memory in /proc from a thread until told to stop."""

    def __init__(self, pid: int) -> None:
        self.hwm_bytes = 0
        self.anonymous_bytes = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                text = self._status.read_text()
            except OSError:
                return
            found = {
                key: int(kib) * 1024
                for key, kib in re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", text, re.MULTILINE)
            }
            self.hwm_bytes = max(self.hwm_bytes, found.get("VmHWM", 0))
            self.anonymous_bytes = max(self.anonymous_bytes, found.get("RssAnon", 0))

    def stop(self) -> None:
        """Stop watching; the peaks are final afterwards."""
        self._stop.set()
        self._thread.join()


def run_measured(
    command: Sequence[str], log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Measurement:
    """Run `command` to its end and measure it; its output goes to `log`, or nowhere.

    `environment` is added to this process's own. A failure is told by `exit_code`, not raised;
    a command that cannot be started raises OSError.
    """
    with (log or Path(os.devnull)).open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        sampler = MemorySampler(process.pid)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Measurement(
        wall_s=wall,
        user_s=usage.ru_utime,
        sys_s=usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        peak_hwm_bytes=sampler.hwm_bytes,
        peak_anonymous_bytes=sampler.anonymous_bytes,
        exit_code=process.returncode,
    )


def write_measured(path: Path, size: int) -> Measurement:
    """Write `size` bytes that do not compress to `path`, sync them, and measure it."""
    piece = memoryview(os.urandom(WRITE_PIECE))
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = size
        while left:
            left -= os.write(descriptor, piece[: min(left, WRITE_PIECE)])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Measurement(wall, user, system, 0, 0, 0, 0)


def read_measured(paths: Sequence[Path]) -> Measurement:
    """Measure `cat` of the files to nowhere."""
    return run_measured(["cat", *map(str, paths)])


def added(first: Measurement, second: Measurement) -> Measurement:
    """Return what two processes take one after the other: times add up, peaks do not."""
    return Measurement(
        wall_s=first.wall_s + second.wall_s,
        user_s=first.user_s + second.user_s,
        sys_s=first.sys_s + second.sys_s,
        peak_rss_bytes=max(first.peak_rss_bytes, second.peak_rss_bytes),
        peak_hwm_bytes=max(first.peak_hwm_bytes, second.peak_hwm_bytes),
        peak_anonymous_bytes=max(first.peak_anonymous_bytes, second.peak_anonymous_bytes),
        exit_code=first.exit_code or second.exit_code,
    )


def busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has worked since it started."""
    names = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, names[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class OtherWork:
    """How much of the machine something else took during a measurement.

    Threads that wait for each other by spinning take more CPU seconds too when something else
    runs, so that no figure taken on a busy machine is good.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy = busy_seconds()

    def cores(self, measured: Measurement) -> float:
        """Return the cores that other processes and the kernel kept busy, on average until now."""
        wall = time.perf_counter() - self._start
        return max(0.0, busy_seconds() - self._busy - measured.cpu_s) / wall


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the files' pages, which it does for those that are synced."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
