"""SIGKILL at any moment: nothing half-written is ever at the target, and the work goes on."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 12
"""Runs killed at random moments in the default suite."""
KILLS_LONG = 300
"""The same with `-m faults`."""
ROOT = Path(__file__).parents[1]

CHILD = """
import os, random, signal, sys, threading, time
from pathlib import Path
from mergeconf.dtypes import DType
from mergeconf.storage import output
from mergeconf.storage.layout import OutputTensor, plan_layout

target, force, fatal = Path(sys.argv[1]), sys.argv[2] == "force", int(sys.argv[3])
output.SYNC_BYTES, output.SYNC_SECONDS = 100_000, 0.01
calls = 0

def counted(real):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call

if fatal:
    for name in ("pwrite", "write", "fsync", "fdatasync", "rename", "unlink", "rmdir", "mkdir",
                 "posix_fallocate", "close", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))

rng = random.Random(1)
pause = 0 if fatal else 0.002
shapes = [(f"l.{i}.w", DType.bfloat16, (rng.randrange(1, 400), 100)) for i in range(24)]
layout = plan_layout([OutputTensor(*shape) for shape in shapes], 400_000)
with output.OutputWriter(target, layout, "same", force=force, inputs=[]) as writer:
    print("finished", len(writer.finished), flush=True)
    todo = [name for name in layout.tensors if name not in writer.finished]

    def work(names):
        for name in names:
            data = random.Random(name).randbytes(layout.tensors[name].nbytes)
            for at in range(0, len(data), 20_000):
                writer.write(name, at, data[at : at + 20_000])
                time.sleep(pause)
            writer.finish(name)

    threads = [threading.Thread(target=work, args=(todo[i::2],)) for i in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    writer.commit({"config.json": b"{}", "a/b.json": b"{}"})
print("done", flush=True)
"""


def start(target: Path, force: bool = False, fatal: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(target), "force" if force else "-", str(fatal)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(child: subprocess.Popen[str]) -> tuple[bool, str]:
    """Wait for a run; return whether it came to its end, and what it printed."""
    out, err = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), err
    return child.returncode == 0, out


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What a run gives that nobody interrupts."""
    target = tmp_path_factory.mktemp("whole") / "out"
    assert end(start(target))[0]
    files = read_all(target)
    assert len(files) > 5
    return files


def check_between(target: Path, whole: dict[str, bytes], old: dict[str, bytes] | None) -> None:
    """Check that the target is absent (only its first name gone aside), the old or the new."""
    aside = target.with_name("out.mergeconf-old")
    if target.exists():
        assert read_all(target) in ([whole] if old is None else [whole, old])
    elif old is not None:
        assert read_all(aside) == old


def kill_often(folder: Path, whole: dict[str, bytes], kills: int, seed: int) -> int:
    rng = random.Random(seed)
    progressed = 0
    for number in range(kills):
        target = folder / "out"
        child = start(target)
        assert child.stdout is not None
        found = child.stdout.readline()
        progressed += found.startswith("finished") and not found.startswith("finished 0")
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        end(child)
        check_between(target, whole, None)
        if target.exists() or number % 6 == 5 or number == kills - 1:
            if not target.exists():
                assert end(start(target))[0]
            assert read_all(target) == whole
            # a kill after all was in place can leave the lock file, which nobody holds
            assert {path.name for path in folder.iterdir()} <= {"out", ".out.mergeconf-lock"}
            shutil.rmtree(target)
    return progressed


def crash_everywhere(folder: Path, whole: dict[str, bytes], force: bool, step: int) -> int:
    """Kill runs at their n-th system call, for every n (or every `step`-th)."""
    old = {"model.safetensors": b"old", "x/y": b"z"} if force else None
    target = folder / "out"
    fatal, crashes = 1, 0
    while True:
        shutil.rmtree(folder)
        folder.mkdir()
        for name, data in (old or {}).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        if end(start(target, force, fatal))[0]:
            assert read_all(target) == whole
            return crashes
        crashes += 1
        check_between(target, whole, old)
        # where all is in place already, a further run clears what the crash left
        complete = target.exists() and read_all(target) == whole
        assert end(start(target, force or complete))[0]
        assert read_all(target) == whole
        assert [path.name for path in folder.iterdir()] == ["out"]
        fatal += step


def test_killed_at_random_moments(tmp_path, whole):
    progressed = kill_often(tmp_path, whole, KILLS, seed=0)
    print(f"{KILLS} kills, {progressed} runs went on from an earlier one")
    assert progressed


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_some_system_calls(tmp_path, whole, force):
    (tmp_path / "f").mkdir()
    crashes = crash_everywhere(tmp_path / "f", whole, force, step=7)
    print(f"{crashes} crashes at system calls, force={force}")
    assert crashes > 3


@pytest.mark.faults
def test_killed_hundreds_of_times_at_random_moments(tmp_path, whole):
    progressed = kill_often(tmp_path, whole, KILLS_LONG, seed=int(time.time()))
    print(f"{KILLS_LONG} kills, {progressed} runs went on from an earlier one")


@pytest.mark.faults
@pytest.mark.parametrize("force", [False, True])
def test_killed_at_every_system_call(tmp_path, whole, force):
    (tmp_path / "f").mkdir()
    print(f"{crash_everywhere(tmp_path / 'f', whole, force, step=1)} crashes, force={force}")
