"""Reading tensors' bytes: whole, by many threads, with few descriptors, and honest about faults."""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
from pathlib import Path

import pytest

from mergeconf.checkpoint import ReadFiles, read_header
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError
from mergeconf.storage.layout import OutputTensor, plan_layout


def make(path, size=1000, seed=0):
    """Write a file of one tensor of bytes; return the stored tensor and its content."""
    (file,) = plan_layout([OutputTensor("t", DType.uint8, (size,))], 10**9).files
    content = random.Random(seed).randbytes(size)
    path.write_bytes(file.header + content)
    return read_header(path).tensors["t"], content


def count_open():
    """Return the number of open descriptors where the system tells it."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else 0


def read(files, stored, offset, length):
    buffer = bytearray(length)
    files.read_into(stored, offset, memoryview(buffer))
    return bytes(buffer)


def test_any_range_and_nothing_beyond(tmp_path):
    stored, content = make(tmp_path / "a.safetensors")
    with ReadFiles() as files:
        for offset, length in [(0, 1000), (0, 0), (1000, 0), (7, 11), (999, 1)]:
            assert read(files, stored, offset, length) == content[offset : offset + length]
        assert files.bytes_read == 1012
        for offset, length in [(-1, 1), (1000, 1), (0, 1001)]:
            with pytest.raises(ValueError, match="do not exist"):
                read(files, stored, offset, length)
        files.advise(stored, 10, 100)
        files.advise(stored, 10, 10**9)
        files.advise(stored, 1000, 5)


def test_short_reads_are_continued_also_into_wider_items(tmp_path, monkeypatch):
    stored, content = make(tmp_path / "a.safetensors")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0].cast("B")[:7]], at))
    with ReadFiles() as files:
        assert read(files, stored, 3, 900) == content[3:903]
        buffer = bytearray(800)
        files.read_into(stored, 0, memoryview(buffer).cast("q"))
        assert buffer == content[:800]


def test_threads_share_few_descriptors(tmp_path):
    stored = [make(tmp_path / f"{i}.safetensors", seed=i) for i in range(20)]
    failures = []
    before = count_open()
    with ReadFiles(limit=3) as files:

        def work(seed):
            rng = random.Random(seed)
            for _ in range(300):
                tensor, content = rng.choice(stored)
                if read(files, tensor, 100, 50) != content[100:150]:
                    failures.append(tensor)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        read(files, stored[0][0], 0, 1)
        assert count_open() <= before + 3
    assert count_open() == before


def test_scarce_descriptors_are_freed_and_tried_again(tmp_path, monkeypatch):
    stored = [make(tmp_path / f"{i}.safetensors", seed=i) for i in range(6)]
    real, held = os.open, []

    def scarce(path, *args):
        if len(held) >= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        held.append(real(path, *args))
        return held[-1]

    close = os.close
    monkeypatch.setattr(os, "open", scarce)
    monkeypatch.setattr(os, "close", lambda fd: (held.remove(fd), close(fd)))
    with ReadFiles() as files:
        for tensor, content in stored * 2:
            assert read(files, tensor, 0, 10) == content[:10]


@pytest.mark.parametrize("change", ["shorter", "longer", "touched", "gone"])
def test_a_file_that_changed_before_it_is_opened(tmp_path, change):
    path = tmp_path / "a.safetensors"
    stored, _ = make(path)
    content = path.read_bytes()
    if change == "shorter":
        path.write_bytes(content[:-1])
    elif change == "longer":
        path.write_bytes(content + b"x")
    elif change == "touched":
        os.utime(path, ns=(0, stored.stamp.mtime_ns + 1))
    else:
        path.unlink()
    with ReadFiles() as files, pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read(files, stored, 0, 1)


def test_a_file_that_changes_during_the_run(tmp_path):
    path = tmp_path / "a.safetensors"
    stored, _ = make(path)
    files = ReadFiles()
    read(files, stored, 0, 1)
    os.truncate(path, stored.offset + 500)
    with pytest.raises(CheckpointError, match=r"ends at byte \d+, inside tensor 't'"):
        read(files, stored, 0, 1000)
    with pytest.raises(CheckpointError, match="has changed since"):
        files.close()
    files.close()


def test_two_looks_at_one_file_must_agree(tmp_path):
    path = tmp_path / "a.safetensors"
    first, _ = make(path)
    with ReadFiles() as files:
        read(files, first, 0, 1)
        make(tmp_path / "b.safetensors", seed=1)
        (tmp_path / "b.safetensors").replace(path)
        os.utime(path, ns=(0, 5))
        with pytest.raises(CheckpointError, match="has changed"):
            read(files, read_header(path).tensors["t"], 0, 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EINVAL])
def test_faults_of_the_disk_name_the_file(tmp_path, monkeypatch, code):
    stored, _ = make(tmp_path / "a.safetensors")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with ReadFiles() as files:
        read(files, stored, 0, 1)
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read"):
            read(files, stored, 0, 1)


def test_an_error_in_the_block_is_not_hidden_by_a_changed_file(tmp_path):
    stored, _ = make(tmp_path / "a.safetensors")
    with pytest.raises(KeyError), ReadFiles() as files:
        read(files, stored, 0, 1)
        os.utime(stored.file, ns=(0, 1))
        raise KeyError
