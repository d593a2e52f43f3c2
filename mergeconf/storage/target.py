"""May this folder be written, is there room, and how does a result take its place?

Nothing that is there is lost by mistake: a folder is replaced only where that was asked for, only
where it holds a model, and never where it holds an input. Beside a target `out` there may lie

- `.out.mergeconf-lock`: held (flock) while a run is at work; it says which process;
- `out.mergeconf-staging`: what a run has written so far;
- `out.mergeconf-old`: the folder being replaced, between two renames; put back after a crash;
- `out.mergeconf-trash`: the folder that was replaced, being deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mergeconf.errors import OutputError, Problem
from mergeconf.units import format_size

_SUFFIXES = (".mergeconf-staging", ".mergeconf-old", ".mergeconf-trash", ".mergeconf-lock")
LOCK_NAME = "mergeconf.lock"
"""Name of the file that says what an output is."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "choose another output folder"


@dataclass(frozen=True, slots=True)
class Places:
    """The paths that a run uses beside its target."""

    target: Path
    staging: Path
    aside: Path
    trash: Path
    lock: Path


def places_of(target: Path) -> Places:
    """Return the paths beside a target; `target` has its links resolved."""
    staging, aside, trash, lock = _SUFFIXES
    name, folder = target.name, target.parent
    return Places(
        target, folder / (name + staging), folder / (name + aside), folder / (name + trash),
        folder / f".{name}{lock}",
    )  # fmt: skip


def refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    """Raise an OutputError about a path."""
    raise OutputError(Problem(message, where=str(path), hint=hint))


def failed(path: Path, action: str, error: OSError, needed: int = 0) -> OutputError:
    """Return the OutputError for a failed system call.

    Args:
        path: the file or folder it was about.
        action: what could not be done: `cannot be written`.
        error: what the system said.
        needed: bytes that were to be written, where room is short.
    """
    reason, hint = (error.strerror or str(error)).lower(), ""
    if error.errno in _NO_ROOM:
        need = f"{format_size(needed)} needed, " if needed else ""
        with suppress(OutputError):
            reason += f" ({need}{format_size(free_bytes(path))} free)"
        hint = f"make room or {_ELSEWHERE}; what is finished is kept"
    elif error.errno == errno.EFBIG:
        hint = "this filesystem takes no file of that size; choose a smaller shard size"
    elif error.errno == errno.EIO:
        hint = "the disk reports damage; what it has not confirmed will be written again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
        hint = _ELSEWHERE
    return OutputError(Problem(f"{action}: {reason}", where=str(path), hint=hint))


# --- may it be written? -----------------------------------------------------------------------


def check_target(target: Path, inputs: Iterable[Path] = (), force: bool = False) -> Path:
    """Return the folder that will really be written, links resolved, if it may be written.

    Changes nothing. A target may be missing or an empty folder; with `force` also a folder that
    holds a model, which is replaced at the last moment.

    Args:
        target: the folder to write; parents that are missing will be made.
        inputs: folders (or single files) that are read: never replaced, nor what holds them.
        force: whether a model that is there may be replaced.

    Raises:
        OutputError: it may not be written; the reason and a way out.
    """
    try:
        if target.is_symlink() and not target.exists():
            refuse(target, f"is a link to {target.readlink()}, which does not exist")
        resolved = target.resolve()
        if resolved.exists() and not resolved.is_dir():
            refuse(target, "is a file, not a folder", _ELSEWHERE)
        _check_place(target, resolved)
        _check_inputs(target, resolved, inputs)
        aside = places_of(resolved).aside
        # a run that was killed while it replaced the target: what was there will be put back
        there = aside if aside.is_dir() and not resolved.exists() else resolved
        if there.is_dir():
            _check_content(target, there, force)
        _check_parent(target, resolved)
    except OSError as error:
        raise failed(target, "cannot be looked at", error) from error
    except (RuntimeError, ValueError) as error:  # a loop of links; a NUL character
        refuse(target, f"is no path that can be written: {error}")
    return resolved


def _check_place(target: Path, resolved: Path) -> None:
    if resolved.parent == resolved:
        refuse(target, "is the root of the file system", "name a folder inside it")
    if resolved.name.endswith(_SUFFIXES):
        refuse(target, "is a name that mergeconf keeps for its own work", _ELSEWHERE)
    here = Path.cwd()
    if resolved == here:
        refuse(target, "is the current directory, which cannot be replaced", "name a folder in it")
    if resolved in here.parents:
        refuse(target, "holds the current directory and cannot be replaced", _ELSEWHERE)
    home = Path("~")
    with suppress(RuntimeError):  # not every user has one
        home = home.expanduser().resolve()
    if resolved == home or resolved in home.parents:
        refuse(target, "is or holds your home folder and cannot be replaced", _ELSEWHERE)
    if os.path.ismount(resolved):
        refuse(
            target,
            "is where a disk is mounted, which cannot be replaced",
            "name a folder inside it",
        )


def _check_inputs(target: Path, resolved: Path, inputs: Iterable[Path]) -> None:
    if not resolved.exists():
        return
    for given in inputs:
        real = given.resolve()
        for holder in (real, *real.parents):
            # samefile sees through other names of one folder, such as bind mounts
            if holder == resolved or (holder.exists() and holder.samefile(resolved)):
                fact = "is" if holder == real else "holds"
                refuse(
                    target, f"{fact} the input {given}, which a merge never replaces", _ELSEWHERE
                )


def _check_content(target: Path, there: Path, force: bool) -> None:
    names = {path.name for path in there.iterdir()}
    if not names:
        return
    if not force and LOCK_NAME in names:
        refuse(
            target,
            "holds the result of another run",
            "--update computes what has changed, --force writes all of it anew",
        )
    if not force:
        refuse(target, "exists and is not empty", f"{_ELSEWHERE}, or --force to replace it")
    if not any(name.endswith(".safetensors") for name in names):
        refuse(
            target,
            "holds files but no .safetensors file, and is not replaced even with --force",
            f"empty it yourself or {_ELSEWHERE}",
        )
    if ".git" in names:
        refuse(
            target,
            "is a git repository, and is not replaced even with --force",
            "write elsewhere and copy the result into it",
        )


def _check_parent(target: Path, resolved: Path) -> None:
    parent = _existing(resolved.parent)
    if not parent.is_dir():
        refuse(target, f"cannot be made: {parent} is not a folder", _ELSEWHERE)
    if not os.access(parent, os.W_OK | os.X_OK):
        refuse(target, f"cannot be made: {parent} cannot be written to", _ELSEWHERE)


def _existing(path: Path) -> Path:
    while not path.exists() and path.parent != path:
        path = path.parent
    return path


def free_bytes(target: Path) -> int:
    """Return the bytes that can still be written where `target` lies or would lie.

    Raises:
        OutputError: the place cannot be looked at.
    """
    try:
        status = os.statvfs(_existing(target.absolute()))
    except OSError as error:
        raise failed(target, "cannot be looked at", error) from error
    return status.f_bavail * status.f_frsize


# --- one run at a time ------------------------------------------------------------------------


class TargetLock:
    """Held by the run that works on a target; ends with its process, however that ends."""

    def __init__(self, places: Places) -> None:
        """Take the lock.

        Raises:
            OutputError: another run holds it, or the file cannot be made.
        """
        self._path, self._target = places.lock, places.target
        try:
            self._descriptor = self._take()
        except OSError as error:
            raise failed(self._path, "cannot be locked", error) from error

    def _take(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # the run that held it may have removed the file after it was opened here
                if self._is_ours(descriptor):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                    return descriptor
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").split()
                os.close(descriptor)
                name = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another run"
                refuse(
                    self._target,
                    f"is being written by {name}",
                    "wait for it to end or choose another output folder",
                )
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_ours(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let another run begin. May be called again."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with suppress(OSError):  # a lock file that stays does no harm: it is free
            self._path.unlink(missing_ok=True)
        os.close(descriptor)


# --- taking its place -------------------------------------------------------------------------


def restore_target(target: Path) -> bool:
    """Put back a folder that a killed run had moved aside; return whether it was so.

    Raises:
        OutputError: another run is at work there, or the folder cannot be put back.
    """
    try:
        places = places_of(target.resolve())
        if not places.aside.exists():
            return False
    except (OSError, RuntimeError, ValueError):
        return False  # `check_target` says what is wrong with such a path
    lock = TargetLock(places)
    try:
        return recover(places)
    finally:
        lock.release()


def recover(places: Places) -> bool:
    """Finish or undo the replacing that a killed run had begun; the caller holds the lock.

    Returns:
        Whether the earlier folder was put back.

    Raises:
        OutputError: two folders claim the place, or a file cannot be moved.
    """
    try:
        remove_tree(places.trash)
        if not places.aside.exists():
            return False
        if not places.target.exists():
            places.aside.rename(places.target)
            sync_folder(places.target.parent)
            return True
        if places.staging.exists():
            # no run leaves all three: somebody has made the target by hand in the meantime
            refuse(
                places.aside,
                f"a run was killed while it replaced {places.target}, and this is what was there",
                f"keep it or {places.target.name}, and move the other one away",
            )
        _discard(places)
    except OSError as error:
        raise failed(places.target, "cannot be put back", error) from error
    return False


def take_place(places: Places, inputs: Iterable[Path], force: bool) -> None:
    """Make the staging folder the target, at once; the caller holds the lock.

    Raises:
        OutputError: the target is no longer what it was, or cannot be replaced.
    """
    check_target(places.target, inputs, force)
    replaces = places.target.exists() and any(places.target.iterdir())
    try:
        if replaces:
            places.target.rename(places.aside)
        try:
            # where the target has been filled meanwhile, the system itself refuses this
            places.staging.rename(places.target)
        except BaseException:
            if replaces:
                places.aside.rename(places.target)
            raise
    except OSError as error:
        raise failed(places.target, "cannot be put in place", error) from error
    try:
        sync_folder(places.target.parent)
        if replaces:
            _discard(places)
    except OSError as error:
        raise failed(places.target, "is in place, but not surely durable", error) from error


def _discard(places: Places) -> None:
    # renamed first: what `aside` names is always whole, so that putting it back is always right
    places.aside.rename(places.trash)
    with suppress(OSError):  # the result is in place; the next run tries again
        remove_tree(places.trash)


def remove_tree(path: Path) -> None:
    """Delete a folder or file, if it is there.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: it cannot be done.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not every filesystem can
            raise
    finally:
        os.close(descriptor)


def write_fully(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all bytes at an offset of a file.

    Raises:
        OSError: they cannot be written.
    """
    view = memoryview(data)
    if not view.nbytes:
        return
    done = os.pwrite(descriptor, view, offset)
    if done == view.nbytes:
        return
    view = view.cast("B")
    while done < len(view):
        if not (wrote := os.pwrite(descriptor, view[done:], offset + done)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += wrote


def read_fully(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer from an offset of a file.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    view = buffer.cast("B")
    while view.nbytes:
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise OSError(errno.EIO, "ends early")
        view, offset = view[got:], offset + got
