"""Writing: exact bytes, journals that never claim too much, faults that lose nothing."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mergeconf.dtypes import DType
from mergeconf.errors import MergeconfError, OutputError
from mergeconf.storage import journal, output, staging, target
from mergeconf.storage.journal import Journal, read_journal
from mergeconf.storage.layout import Layout, OutputTensor, plan_layout
from mergeconf.storage.output import OutputWriter

SIZES = [(f"layers.{i}.w", DType.bfloat16, (7, 10 * i)) for i in range(12)]
LAYOUT = plan_layout(
    [OutputTensor(*size) for size in [*SIZES, ("steps", DType.int64, ()), ("e", DType.bool, (0,))]],
    3000,
)
SIDECARS: dict[str, bytes | Path] = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}


def content(name: str, layout: Layout = LAYOUT) -> bytes:
    return random.Random(name).randbytes(layout.tensors[name].nbytes)


def write_some(writer: OutputWriter, names, layout: Layout = LAYOUT) -> None:
    """Write tensors in pieces that do not follow each other."""
    for name in names:
        data = content(name, layout)
        pieces = [(at, data[at : at + 333]) for at in range(0, len(data), 333)]
        for at, piece in reversed(pieces):
            writer.write(name, at, memoryview(piece))
        writer.finish(name)


def run(folder: Path, fingerprint: str = "f", **options) -> frozenset[str]:
    """Do a whole run; return what it found finished."""
    with OutputWriter(folder, LAYOUT, fingerprint, **options) as writer:
        write_some(writer, [name for name in LAYOUT.tensors if name not in writer.finished])
        assert writer.commit(SIDECARS) == folder
        return writer.finished


def assert_whole(folder: Path) -> None:
    expected = {file.name for file in LAYOUT.files} | {LAYOUT.index_name} | set(SIDECARS)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == expected
    for file in LAYOUT.files:
        data = (folder / file.name).read_bytes()
        assert data == file.header + b"".join(map(content, file.tensors))
        with safe_open(folder / file.name, "np") as opened:
            assert set(opened.keys()) == set(file.tensors)
    assert (folder / LAYOUT.index_name).read_bytes() == LAYOUT.index


def left_over(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "work" / "out"


# --- the way it should go ---------------------------------------------------------------------


def test_a_run_gives_the_exact_files_and_leaves_nothing_beside(out):
    assert len(LAYOUT.files) > 2
    assert run(out) == frozenset()
    assert_whole(out)
    assert left_over(out) == set()


def test_an_empty_folder_and_a_link_are_written(out):
    out.mkdir(parents=True)
    (out.parent / "link").symlink_to("out")
    with OutputWriter(out.parent / "link", LAYOUT, "f") as writer:
        assert writer.target == out
        write_some(writer, LAYOUT.tensors)
        writer.commit(SIDECARS)
    assert_whole(out)
    assert left_over(out) == {"link"}


def test_threads_write_pieces_of_all_tensors_at_once(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        pieces = [
            (name, at, content(name)[at : at + 50])
            for name in LAYOUT.tensors
            for at in range(0, LAYOUT.tensors[name].nbytes, 50)
        ]
        random.Random(1).shuffle(pieces)

        def work(number: int) -> None:
            for name, at, piece in pieces[number::4]:
                writer.write(name, at, piece)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in LAYOUT.tensors:
            writer.finish(name)
        writer.commit(SIDECARS)
    assert_whole(out)


def test_short_writes_are_continued(out, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:7], at))
    run(out)
    assert_whole(out)


def test_wide_buffers_are_taken_as_bytes(out, monkeypatch):
    layout = plan_layout([OutputTensor("a", DType.int64, (4,))], 100)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:9], at))
    with OutputWriter(out, layout, "f") as writer:
        writer.write("a", 0, memoryview(bytes(range(32))).cast("q"))
        writer.finish("a")
        writer.commit({})
    assert (out / "model.safetensors").read_bytes()[-32:] == bytes(range(32))


def test_sidecars_are_copied_from_files(out, tmp_path):
    source = tmp_path / "tokenizer.json"
    source.write_bytes(random.Random(0).randbytes(3_000_000))
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, LAYOUT.tensors)
        writer.commit({"tokenizer.json": source})
    assert (out / "tokenizer.json").read_bytes() == source.read_bytes()


def test_misuse_is_refused(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        for offset, length in [(-1, 1), (0, 9), (8, 1)]:
            with pytest.raises(ValueError, match="do not exist"):
                writer.write("steps", offset, bytes(length))
        writer.write("steps", 0, bytes(8))
        writer.finish("steps")
        with pytest.raises(ValueError, match="finished already"):
            writer.finish("steps")
        with pytest.raises(ValueError, match="finished already"):
            writer.write("steps", 0, bytes(8))
        with pytest.raises(OutputError, match="13 tensors are not finished"):
            writer.commit({})
    for action in (lambda: writer.write("e", 0, b""), lambda: writer.finish("e")):
        with pytest.raises(OutputError, match="no longer being written"):
            action()
    with pytest.raises(OutputError):
        writer.commit({})


def test_names_of_small_files_stay_inside_and_apart(out):
    bad = ["../x", "/x", "a/../x", "", ".", "a//b", "a\0", ".mergeconf-journal",
           LAYOUT.files[0].name, LAYOUT.index_name]  # fmt: skip
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, LAYOUT.tensors)
        with pytest.raises(OutputError) as caught:
            writer.commit(dict.fromkeys(bad, b""))
        assert len(caught.value.problems) == len(bad)
        writer.commit(SIDECARS)  # the writer can still go on
    assert_whole(out)


# --- going on ---------------------------------------------------------------------------------


def test_an_interrupted_run_is_continued(out):
    some = list(LAYOUT.tensors)[3:9]
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, some)
        writer.write("layers.11.w", 0, b"half")
    assert left_over(out) == {"out.mergeconf-staging"}
    assert not out.exists()
    assert run(out) == set(some)
    assert_whole(out)


def test_another_fingerprint_starts_anew(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, list(LAYOUT.tensors)[:5])
    assert run(out, "g") == frozenset()
    assert_whole(out)


def test_another_layout_under_one_fingerprint_reuses_no_misplaced_byte(out):
    other = plan_layout([place.tensor for place in LAYOUT.tensors.values()], 10**9)
    with OutputWriter(out, other, "f") as writer:
        write_some(writer, list(other.tensors)[:5], other)
    assert run(out) == frozenset()
    assert_whole(out)


@pytest.mark.parametrize("damage", ["gone", "shorter", "header", "link"])
def test_a_file_that_was_damaged_meanwhile_is_written_again(out, damage):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, LAYOUT.tensors)
    path = out.parent / "out.mergeconf-staging" / LAYOUT.files[1].name
    data = path.read_bytes()
    path.unlink()
    if damage == "shorter":
        path.write_bytes(data[:-1])
    elif damage == "header":
        path.write_bytes(b"\0" + data[1:])
    elif damage == "link":
        (out.parent / "victim").write_bytes(data)
        path.symlink_to("../victim")
    found = run(out)
    assert found == set(LAYOUT.tensors) - set(LAYOUT.files[1].tensors)
    assert_whole(out)
    if damage == "link":
        assert (out.parent / "victim").read_bytes() == data


def test_small_files_of_an_earlier_try_do_not_stay(out, tmp_path):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, LAYOUT.tensors)
        with pytest.raises(OutputError, match="none"):
            writer.commit({"a/old.json": b"{}", "b.json": tmp_path / "none"})
    assert run(out) == set(LAYOUT.tensors)
    assert_whole(out)


def test_nothing_worth_keeping_is_not_kept(out):
    with OutputWriter(out, LAYOUT, "f"):
        pass
    assert left_over(out) == set()
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, list(LAYOUT.tensors)[:5])
        writer.close(keep=False)
        writer.close()
    assert left_over(out) == set()


def test_finished_tensors_are_journaled_before_the_run_ends(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, list(LAYOUT.tensors)[:5])
        deadline = time.monotonic() + 20
        while len(read_journal(writer.staging, "f") or ()) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# --- the journal ------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=5), max_size=5), st.data())
@settings(max_examples=200)
def test_a_torn_or_damaged_journal_claims_no_more_than_was_written(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("j")
    log = Journal(folder, "f", names[:2])
    log.add(names[2:])
    log.close()
    assert read_journal(folder, "f") == names
    assert read_journal(folder, "g") is None
    whole = log.path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    log.path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=20)))
    found = read_journal(folder, "f")
    assert found is None or found == names[: len(found)]
    position, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    log.path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
    found = read_journal(folder, "f")
    assert found is None or found == names[: len(found)]


def test_a_torn_journal_loses_one_tensor(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, list(LAYOUT.tensors)[:5])
    path = out.parent / "out.mergeconf-staging" / journal.NAME
    path.write_bytes(path.read_bytes()[:-3])
    assert len(run(out)) == 4
    assert_whole(out)


# --- force, and two at once -------------------------------------------------------------------


def test_force_replaces_a_model_at_the_end_only(out):
    run(out)
    (out / "old.txt").write_text("")
    with pytest.raises(OutputError, match="exists and is not empty"):
        OutputWriter(out, LAYOUT, "f")
    with OutputWriter(out, LAYOUT, "f", force=True) as writer:
        write_some(writer, LAYOUT.tensors)
        assert (out / "old.txt").exists()
        writer.commit(SIDECARS)
    assert_whole(out)
    assert left_over(out) == set()


def test_inputs_are_not_replaced(out):
    run(out)
    with pytest.raises(OutputError, match="the input"):
        OutputWriter(out, LAYOUT, "f", inputs=[out / LAYOUT.files[0].name, out], force=True)
    assert_whole(out)


def test_a_target_that_appears_during_the_run_is_not_lost(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, LAYOUT.tensors)
        out.mkdir()
        (out / "letter.txt").write_text("dear")
        with pytest.raises(OutputError, match="not empty"):
            writer.commit(SIDECARS)
    assert (out / "letter.txt").read_text() == "dear"
    (out / "letter.txt").unlink()
    assert run(out) == set(LAYOUT.tensors)
    assert_whole(out)


def test_two_runs_on_one_target(out):
    with OutputWriter(out, LAYOUT, "f") as writer:
        with pytest.raises(OutputError, match=f"is being written by process {os.getpid()}"):
            OutputWriter(out, LAYOUT, "f")
        write_some(writer, LAYOUT.tensors)
        writer.commit(SIDECARS)
    assert_whole(out)


def test_many_threads_race_for_one_target(out):
    outcomes: list[str] = []

    def work() -> None:
        try:
            run(out)
            outcomes.append("won")
        except OutputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("won") == 1
    assert all("is being written" in text or "exists" in text or text == "won" for text in outcomes)
    assert_whole(out)
    assert left_over(out) == set()


# --- faults -----------------------------------------------------------------------------------

CALLS = {
    "pwrite": errno.ENOSPC,
    "posix_fallocate": errno.ENOSPC,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "fdatasync": errno.EIO,
    "open": errno.EMFILE,
}


class _Failing:
    """Stands for a call of `os` that fails from its n-th use on, in files of the output."""

    def __init__(self, name: str, fatal: int, once: bool) -> None:
        self.real = getattr(os, name)
        self.code, self.fatal, self.once, self.count = CALLS[name], fatal, once, 0

    def __call__(self, *args, **options):
        self.count += 1
        if self.count == self.fatal or (self.count > self.fatal and not self.once):
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_at_any_point_loses_nothing(out, name, once):
    out.parent.mkdir()
    failures = 0
    for fatal in range(1, 400):
        failing = _Failing(name, fatal, once)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, failing)
            patch.setattr(output, "SYNC_BYTES", 2000)
            try:
                run(out)
            except MergeconfError as error:  # and no other kind
                failures += 1
                assert str(out.parent) in str(error)
                if out.exists():  # only its durability was in doubt
                    assert_whole(out)
        if not out.exists():
            assert left_over(out) <= {"out.mergeconf-staging", ".out.mergeconf-lock"}
            run(out)
        assert_whole(out)
        assert left_over(out) <= {".out.mergeconf-lock"}
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        out.rmdir()
        if failing.count < fatal:
            break
    assert failures >= 2
    print(f"{name}: {failures} faults injected")


def test_a_sync_that_fails_in_the_background_reaches_the_writers(out, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(output, "SYNC_SECONDS", 0.01)
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, ["layers.3.w"])
        deadline = time.monotonic() + 20
        with pytest.raises(OutputError, match="cannot be made durable"):
            while time.monotonic() < deadline:
                writer.write("layers.4.w", 0, b"x")
        with pytest.raises(OutputError, match="cannot be made durable"):
            writer.finish("layers.4.w")
    monkeypatch.undo()
    assert run(out) == frozenset()  # nothing was believed


def test_nothing_is_journaled_before_it_is_durable(out, monkeypatch):
    synced = threading.Event()
    real = os.fdatasync

    def slow(descriptor):
        assert synced.wait(20)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    monkeypatch.setattr(output, "SYNC_SECONDS", 0.01)
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, ["layers.3.w"])
        time.sleep(0.1)
        assert read_journal(writer.staging, "f") == []
        synced.set()
    assert read_journal(writer.staging, "f") == ["layers.3.w"]


def test_too_little_room_is_said_before_anything_is_written(out, monkeypatch):
    monkeypatch.setattr(staging, "free_bytes", lambda _: 1000)
    with pytest.raises(OutputError, match=r"too little room: .* needed, .* free"):
        OutputWriter(out, LAYOUT, "f")
    assert left_over(out) == set()
    monkeypatch.setattr(staging, "free_bytes", lambda _: LAYOUT.total_bytes)
    with pytest.raises(OutputError, match="too little room"):
        OutputWriter(out, LAYOUT, "f", extra_bytes=1)
    OutputWriter(out, LAYOUT, "f").close()


def test_room_that_is_taken_already_is_not_asked_for_again(out, monkeypatch):
    with OutputWriter(out, LAYOUT, "f") as writer:
        write_some(writer, ["layers.3.w"])
    monkeypatch.setattr(staging, "free_bytes", lambda _: len(LAYOUT.index))
    with OutputWriter(out, LAYOUT, "f") as writer:
        assert writer.finished == {"layers.3.w"}


def test_filesystems_that_cannot_reserve_are_written_all_the_same(out, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    run(out)
    assert_whole(out)


def test_the_first_rename_is_undone_when_the_second_fails(out, monkeypatch):
    run(out)
    (out / "old.txt").write_text("")
    real = Path.rename

    def rename(self, other):
        if self.name.endswith("staging"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, other)

    with OutputWriter(out, LAYOUT, "f", force=True) as writer:
        write_some(writer, LAYOUT.tensors)
        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError, match="cannot be put in place"):
            writer.commit(SIDECARS)
        monkeypatch.undo()
        assert (out / "old.txt").exists()
    assert run(out, force=True) == set(LAYOUT.tensors)
    assert_whole(out)


def test_an_old_folder_that_cannot_be_deleted_goes_with_the_next_run(out, monkeypatch):
    run(out)
    real = target.remove_tree

    def keep(path):
        if path.name.endswith("trash") and path.exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(path)

    monkeypatch.setattr(target, "remove_tree", keep)
    run(out, force=True)
    assert_whole(out)
    assert left_over(out) == {"out.mergeconf-trash"}
    monkeypatch.undo()
    run(out, force=True)
    assert left_over(out) == set()
