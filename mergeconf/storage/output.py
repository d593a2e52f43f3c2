"""How do output bytes get to disk so that a killed run can go on and nobody sees half a result?

Bytes go into a staging folder beside the target, at the places that the layout gives them. A
background thread makes them durable and only then writes the finished tensors into the journal,
so that the disk works while the processors do and the journal never claims what a power cut could
take. At the end the whole folder is renamed into place. A killed run leaves the staging folder,
which the next one goes on with, and a target that is as it was before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from mergeconf.errors import OutputError, Problem, listed
from mergeconf.storage.layout import Layout
from mergeconf.storage.staging import prepare_staging, sweep
from mergeconf.storage.target import (
    TargetLock,
    check_target,
    failed,
    places_of,
    read_fully,
    recover,
    remove_tree,
    restore_target,
    sync_folder,
    take_place,
    write_fully,
)

SYNC_BYTES = 16 << 20
"""Bytes written after which the background thread syncs; while it does, more gather for the next
round, so a slow disk paces itself.

Measured with two writing threads, 2 GiB, ext4 on a disk of 4 GB/s: 0.55 to 0.6 s in all with any
value from 8 to 64 MiB, against 0.85 s with one sync at the end, of which 0.53 s is that sync.
"""
SYNC_SECONDS = 0.5
"""Time after which it syncs what little there is, so that finished tensors are journaled soon."""
_COPY_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class _Shard:
    """A weight file that is being written."""

    path: Path
    size: int
    unfinished: int = 0
    """Tensors in it that are still to be finished."""
    descriptor: int = -1
    """Open from the first write until all is durable."""
    users: int = 0
    """Threads that use the descriptor right now."""

    def open(self) -> int:
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.users += 1
        return self.descriptor

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OutputWriter:
    """Writes a layout's tensors into a staging folder, then puts it in place. Thread-safe.

    A context manager: leaving it without `commit` keeps what is finished for another run.
    """

    def __init__(
        self,
        target: Path,
        layout: Layout,
        fingerprint: str,
        *,
        inputs: Iterable[Path] = (),
        force: bool = False,
        extra_bytes: int = 0,
    ) -> None:
        """Lock the target, prepare its staging folder, and find out what is finished already.

        Args:
            target: the folder to write.
            layout: which files and tensors.
            fingerprint: identity of plan and inputs; what another one wrote is not reused.
            inputs: folders or files that are read, which are never replaced.
            force: whether a model at the target may be replaced, at the end.
            extra_bytes: size of what `commit` will add, for the check of free space.

        Raises:
            OutputError: the target may not be written, another run holds it, or no room.
        """
        self._layout, self._inputs, self._force = layout, tuple(inputs), force
        restore_target(target)
        self._places = places_of(check_target(target, self._inputs, force))
        self.target: Path = self._places.target
        """The folder that will be written, links resolved."""
        self.staging: Path = self._places.staging
        """The folder beside it where the work is done."""
        self.finished: frozenset[str]
        """Names of tensors that an earlier run has finished: they need no work."""
        self._condition = threading.Condition()
        self._failure: tuple[Problem, ...] = ()
        self._pending: list[str] = []
        self._dirty: set[_Shard] = set()
        self._unsynced = self._journaled = 0
        self._stopping = self._closed = False
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise failed(self.target.parent, "cannot be made", error) from error
        self._lock = TargetLock(self._places)
        try:
            self._begin(fingerprint, extra_bytes)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, fingerprint: str, extra_bytes: int) -> None:
        """Find out what is to be done, and start the background thread; the lock is held."""
        layout = self._layout
        recover(self._places)
        check_target(self.target, self._inputs, self._force)  # another run may just have ended
        self._journal, self.finished = prepare_staging(
            self.staging, layout, fingerprint, extra_bytes
        )
        self._shards = [_Shard(self.staging / file.name, file.size) for file in layout.files]
        self._left = set(layout.tensors) - self.finished
        for name in self._left:
            self._shards[layout.tensors[name].file].unfinished += 1
        self._thread = threading.Thread(target=self._sync, name="mergeconf-sync", daemon=True)
        self._thread.start()

    def write(self, name: str, offset: int, buffer: memoryview | bytes) -> None:
        """Write bytes of a tensor, `offset` in bytes from the tensor's start.

        Raises:
            OutputError: writing failed, now or before in the background.
            ValueError: the range does not lie in the tensor, or the tensor is finished.
        """
        place = self._layout.tensors[name]
        view = memoryview(buffer)
        length = view.nbytes
        if offset < 0 or offset + length > place.nbytes:
            raise ValueError(f"{name}: bytes {offset} to {offset + length} do not exist")
        shard = self._shards[place.file]
        descriptor = self._enter(name, shard)
        try:
            write_fully(descriptor, view, place.offset + offset)
        except OSError as error:
            problem = failed(shard.path, "cannot be written", error, shard.size)
            self._fail(problem)
            raise problem from error
        finally:
            self._leave(shard, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with bytes of a tensor that were written before.

        Raises:
            OutputError: they cannot be read.
        """
        place = self._layout.tensors[name]
        shard = self._shards[place.file]
        with self._condition:
            self._check(ending=True)
            try:
                descriptor = shard.open()
            except OSError as error:
                raise failed(shard.path, "cannot be opened", error) from error
        try:
            read_fully(descriptor, buffer, place.offset + offset)
        except OSError as error:
            raise failed(shard.path, "cannot be read", error) from error
        finally:
            with self._condition:
                shard.users -= 1
                self._condition.notify_all()

    def finish(self, name: str) -> None:
        """Know that all bytes of a tensor have been written.

        Raises:
            OutputError: writing failed before, in the background.
            ValueError: the tensor is finished already.
        """
        shard = self._shards[self._layout.tensors[name].file]
        with self._condition:
            self._check()
            if name not in self._left:
                raise ValueError(f"{name} is finished already")
            self._left.remove(name)
            self._pending.append(name)
            self._dirty.add(shard)
            shard.unfinished -= 1

    def commit(self, sidecars: Mapping[str, bytes | Path]) -> Path:
        """Add small files, make all durable and put it in place at once; return the target.

        Args:
            sidecars: content, or a file to copy, by name relative to the output folder.

        Raises:
            OutputError: a tensor is not finished, a name leaves the folder or is in use, or
                writing failed. The staging folder stays.
        """
        with self._condition:
            self._check(ending=True)
            missing = sorted(self._left)
        if missing:
            raise OutputError(f"{len(missing)} tensors are not finished: {listed(missing)}")
        self._check_names(sidecars)
        check_target(self.target, self._inputs, self._force)
        self._stop()
        self._check(ending=True)
        try:
            sweep(self.staging, self._layout)
            for file in self._layout.files:
                _sync_file(self.staging / file.name)
            for name, content in sidecars.items():
                _write_file(self.staging, name, content)
            if self._layout.index_name:
                _write_file(self.staging, self._layout.index_name, self._layout.index)
            self._journal.remove()
            try:
                for folder in {self.staging, *(self.staging / name for name in _folders(sidecars))}:
                    sync_folder(folder)
                take_place(self._places, self._inputs, self._force)
            except BaseException:
                if self.staging.exists():
                    self._journal.rewrite(self._layout.tensors)
                raise
        except OSError as error:
            raise failed(self.staging, "cannot be completed", error) from error
        self._end()
        return self.target

    def close(self, keep: bool = True) -> None:
        """Stop; keep the staging folder so that another run can go on, or remove it.

        A folder in which nothing is finished is removed in any case. May be called again.
        """
        if self._closed:
            return
        self._stop()
        if not keep or not (self.finished or self._journaled):
            self._journal.close()
            with suppress(OSError):  # the next run clears it
                remove_tree(self.staging)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what threads share -------------------------------------------------------------------

    def _check(self, ending: bool = False) -> None:
        """Raise what went wrong in another thread, or that it is too late."""
        if self._failure:
            raise OutputError(self._failure)
        if self._closed or (self._stopping and not ending):
            raise OutputError(Problem("is no longer being written", where=str(self.staging)))

    def _fail(self, error: OutputError) -> None:
        with self._condition:
            self._failure = self._failure or error.problems
            self._condition.notify_all()

    def _enter(self, name: str, shard: _Shard) -> int:
        with self._condition:
            self._check()
            if name not in self._left:
                raise ValueError(f"{name} is finished already")
            try:
                return shard.open()
            except OSError as error:
                raise failed(shard.path, "cannot be opened", error) from error

    def _leave(self, shard: _Shard, written: int) -> None:
        with self._condition:
            shard.users -= 1
            self._dirty.add(shard)
            self._unsynced += written
            if self._unsynced >= SYNC_BYTES or self._stopping:
                self._condition.notify_all()

    # --- the background thread ----------------------------------------------------------------

    def _sync(self) -> None:
        try:
            while (work := self._take()) is not None:
                names, shards = work
                for shard in shards:
                    self._sync_shard(shard)
                self._journal.add(names)
                self._journaled += len(names)
                self._close_complete(shards)
        except OSError as error:
            # after a failed sync the system may call lost pages clean: nothing of this round is
            # journaled, and no later sync is believed
            self._fail(failed(self.staging, "cannot be made durable", error))
        except BaseException as error:  # must not end unseen: `_check` shows it
            self._fail(OutputError(f"the thread that syncs ended: {error!r}"))

    def _take(self) -> tuple[list[str], list[_Shard]] | None:
        """Return the next round's finished tensors and files to sync, or None at the end."""
        with self._condition:
            while not (self._stopping or self._failure) and self._unsynced < SYNC_BYTES:
                if not self._condition.wait(SYNC_SECONDS) and self._dirty:
                    break
            if self._failure or not self._dirty:
                return None
            names, self._pending = self._pending, []
            shards, self._dirty = self._dirty, set()
            self._unsynced = 0
            return names, list(shards)

    def _sync_shard(self, shard: _Shard) -> None:
        with self._condition:
            descriptor = shard.open()
        try:
            _make_durable(descriptor)
        finally:
            with self._condition:
                shard.users -= 1
                self._condition.notify_all()

    def _close_complete(self, shards: list[_Shard]) -> None:
        with self._condition:
            for shard in shards:
                if not (shard.unfinished or shard.users or shard in self._dirty):
                    shard.close()

    def _stop(self) -> None:
        """Let the background thread sync what there is, and end; wait for writes under way."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
            while any(shard.users for shard in self._shards):
                self._condition.wait(SYNC_SECONDS)
        self._thread.join()

    def _end(self) -> None:
        self._closed = True
        self._journal.close()
        for shard in self._shards:
            shard.close()
        self._lock.release()

    def _check_names(self, sidecars: Iterable[str]) -> None:
        taken = {file.name for file in self._layout.files} | {self._layout.index_name}
        problems = []
        for name in sidecars:
            path = PurePosixPath(name)
            inside = path.parts and not path.is_absolute() and ".." not in path.parts
            if not inside or str(path) != name or "\0" in name:
                problems.append(Problem("is no file name inside the output folder", where=name))
            elif name in taken or name.startswith(".mergeconf"):
                problems.append(Problem("is a name that the output needs itself", where=name))
        if problems:
            raise OutputError(problems)


# --- files ------------------------------------------------------------------------------------


def _make_durable(descriptor: int) -> None:
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only
    sync(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders(names: Iterable[str]) -> set[PurePosixPath]:
    """Return the folders, relative to the output, that these files lie in."""
    return {parent for name in names for parent in PurePosixPath(name).parents}


def _write_file(folder: Path, name: str, content: bytes | Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            try:
                source = content.open("rb")
            except OSError as error:
                raise failed(content, "cannot be copied", error) from error
            with source:
                while part := source.read(_COPY_BYTES):
                    stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
