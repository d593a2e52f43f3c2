"""Which folders may be written: people's files are never lost by mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergeconf.errors import OutputError
from mergeconf.storage.target import (
    TargetLock,
    check_target,
    free_bytes,
    places_of,
    restore_target,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of our own, with a home of our own."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"old")
    return folder


def refusal(target: Path, inputs=(), force=False) -> str:
    with pytest.raises(OutputError) as caught:
        check_target(target, inputs, force)
    return str(caught.value)


def test_missing_and_empty_folders_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert check_target(tmp_path / "empty") == tmp_path / "empty"
    assert check_target(tmp_path / "link") == tmp_path / "empty"
    assert check_target(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert check_target(Path("out")) == tmp_path / "here" / "out"
    assert not (tmp_path / "a").exists()


def test_a_model_is_replaced_only_with_force(tmp_path):
    target = make_model(tmp_path / "out")
    assert "exists and is not empty" in refusal(target)
    assert check_target(target, force=True) == target


@pytest.mark.parametrize("files", [["letter.txt"], ["config.json"], ["pytorch_model.bin"]])
def test_what_is_no_model_is_not_replaced_even_with_force(tmp_path, files):
    (tmp_path / "out").mkdir()
    for name in files:
        (tmp_path / "out" / name).write_text("")
    assert "even with --force" in refusal(tmp_path / "out", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_places_that_are_never_written(tmp_path, force):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    make_model(tmp_path / "home" / "m").joinpath("x").mkdir()
    (tmp_path / "home" / "model.safetensors").write_text("")
    (tmp_path / "here" / "model.safetensors").write_text("")
    for target, words in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "file"),
        (tmp_path / "dangling", "link to nowhere"),
        (tmp_path / "loop", "loop"),
        (Path("/"), "root of the file system"),
        (Path(), "current directory"),
        (tmp_path, "holds the current directory"),
        (tmp_path / "home", "home folder"),
        (Path("/proc"), "mounted"),
        (Path("/proc/out"), ""),
        (tmp_path / "out.mergeconf-staging", "keeps for its own work"),
        (Path("a\0b"), "no path"),
        (tmp_path / ("n" * 300), "too long"),
    ]:
        if target.parts[:2] == ("/", "proc") and not os.path.ismount("/proc"):
            continue
        if target == Path("/proc/out") and os.geteuid() == 0:
            continue  # root is told only when it tries
        assert words in refusal(target, force=force), target


def test_a_git_repository_is_not_replaced(tmp_path):
    (make_model(tmp_path / "out") / ".git").mkdir()
    assert "git repository" in refusal(tmp_path / "out", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_inputs_and_what_holds_them_are_never_replaced(tmp_path, force):
    model = make_model(tmp_path / "models" / "base")
    (tmp_path / "models" / "model.safetensors").write_text("")
    (tmp_path / "alias").symlink_to("models")
    single = model / "model.safetensors"
    for target, given in [
        (model, model),
        (model, single),
        (model, Path("../models/base")),
        (tmp_path / "alias" / "base", model),
        (tmp_path / "models", model),
        (tmp_path / "models", single),
        (tmp_path / "alias", model),
    ]:
        words = refusal(target, [tmp_path / "other", given], force=force)
        assert "the input" in words
    assert check_target(model / "merged", [model]) == model / "merged"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written_to(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written to" in refusal(tmp_path / "locked" / "a" / "b")


def test_free_bytes_looks_at_the_nearest_folder(tmp_path):
    status = os.statvfs(tmp_path)
    free = free_bytes(tmp_path / "a" / "b")
    assert abs(free - status.f_bavail * status.f_frsize) < 2**33


def test_one_lock_at_a_time(tmp_path):
    places = places_of(tmp_path / "out")
    lock = TargetLock(places)
    with pytest.raises(OutputError, match=f"out: is being written by process {os.getpid()} on"):
        TargetLock(places)
    lock.release()
    lock.release()
    assert not places.lock.exists()
    places.lock.write_text("99999 elsewhere")  # what a killed run leaves
    TargetLock(places).release()
    places.lock.symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="cannot be locked"):
        TargetLock(places)
    assert not (tmp_path / "victim").exists()


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path):
    target = tmp_path / "out"
    places = places_of(target)
    assert not restore_target(target)
    make_model(places.aside)
    places.staging.mkdir()
    assert "not empty" in refusal(target)  # it counts as being there
    assert restore_target(target)
    assert (target / "model.safetensors").read_bytes() == b"old"
    assert not places.aside.exists()


def test_after_the_second_rename_the_old_folder_goes(tmp_path):
    target = make_model(tmp_path / "out")
    places = places_of(target)
    make_model(places.aside)
    make_model(places.trash)
    assert not restore_target(target)
    assert sorted(os.listdir(tmp_path)) == ["here", "home", "out"]  # noqa: PTH208


def test_two_folders_that_claim_the_place_are_both_kept(tmp_path):
    target = make_model(tmp_path / "out")
    places = places_of(target)
    make_model(places.aside)
    places.staging.mkdir()
    with pytest.raises(OutputError, match="move the other one away"):
        restore_target(target)
    assert target.is_dir()
    assert places.aside.is_dir()
    assert not places.lock.exists()
