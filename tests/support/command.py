"""Calling the command line: inside this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]

SLOW = """
import sys, time
from mergeconf.storage import output
pause = float(sys.argv.pop(1))
output.SYNC_BYTES, output.SYNC_SECONDS = 1, 0.005
real = output.OutputWriter.finish
def finish(self, name):
    real(self, name)
    time.sleep(pause)
output.OutputWriter.finish = finish
from mergeconf.cli import main
main()
"""
"""The command line with a pause after each tensor, so that there is a middle to be stopped in;
its first argument is the pause in seconds."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def call(*args: object) -> Outcome:
    """Run a command in this process, as its script does."""
    from mergeconf.cli import main

    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["mergeconf", *map(str, args)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = 0 if end.code is None else int(end.code)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _sound(Outcome(code, out.getvalue(), err.getvalue()))


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with the package on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def spawn(*args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `python -m mergeconf` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mergeconf", *map(str, args)],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
    )
    return _sound(
        Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"))
    )


def start_slowly(pause: float, *args: object) -> subprocess.Popen[str]:
    """Start a command that pauses after each tensor that it finishes."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(pause), *map(str, args)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite started in the background of a script ignores Ctrl-C, and so would the child
        preexec_fn=_listen_to_interrupts,
    )


def _listen_to_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_of(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a command to end."""
    out, err = process.communicate(timeout=120)
    return _sound(Outcome(process.returncode, out, err))


def _sound(outcome: Outcome) -> Outcome:
    """Fail on what no command may ever do, whatever it was asked."""
    assert "Traceback" not in outcome.out + outcome.err, outcome.err
    assert "a defect of mergeconf" not in outcome.err, outcome.err
    if outcome.code in (2, 130):
        assert outcome.out == "", "errors go to standard error alone"
        assert outcome.err.strip(), "an error without a word"
    return outcome


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def model_of(output: Mapping[str, bytes]) -> dict[str, bytes | str]:
    """Return the content of an output, with the digest of the weights in the lock's place: the
    lock also says where the inputs lie and in which files."""
    files: dict[str, bytes | str] = dict(output)
    lock = files.pop("mergeconf.lock")
    return {**files, "digest of the weights": json.loads(lock)["output"]["digest"]}
