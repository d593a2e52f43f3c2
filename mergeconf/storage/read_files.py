"""How are tensors' bytes read, by many threads, from more files than may be open at once?"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from mergeconf.errors import CheckpointError, Problem
from mergeconf.storage.safetensors_in import FileStamp, StoredTensor

MAX_OPEN = 256
"""Files kept open at most, beyond those in use at the moment."""

_CHANGED_HINT = "let nothing write to the inputs of a run, and start it again"


@dataclass(slots=True)
class _OpenFile:
    """A file, its descriptor and the number of threads that are using it."""

    path: Path
    descriptor: int
    stamp: FileStamp | None
    users: int = 0


class ReadFiles:
    """Reads parts of stored tensors into buffers. Thread-safe; a context manager.

    Positioned reads, not a mapping: a file that ends early is then an error, not a crash, and the
    memory in use is that of the buffers. A file is compared with what it was when its header was
    read both when it is opened and when it is closed, so that a change in between is noticed.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = max(1, limit)
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, of all tensors."""
        return self._bytes_read

    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with a tensor's bytes from `offset`, in bytes from the tensor's start.

        Raises:
            CheckpointError: the file cannot be read, ends early, or has changed since its header
                was read.
            ValueError: the range does not lie in the tensor.
        """
        length = buffer.nbytes
        if offset < 0 or offset + length > tensor.nbytes:
            raise ValueError(f"{tensor.name}: bytes {offset} to {offset + length} do not exist")
        if not length:
            return
        file = self._acquire(tensor)
        try:
            position, done = tensor.offset + offset, 0
            while True:
                got = os.preadv(file.descriptor, [buffer], position + done)
                if got == length - done:
                    break
                if got == 0:
                    _ended(tensor, position + done)
                done += got
                if not buffer.c_contiguous or buffer.format != "B":
                    buffer = buffer.cast("B")
                buffer = buffer[got:]
        except OSError as error:
            _failed(tensor.file, error)
        finally:
            self._release(file, length)

    def advise(self, tensor: StoredTensor, offset: int, length: int) -> None:
        """Tell the system that bytes of a tensor will be read soon: a hint that may do nothing.

        Raises:
            CheckpointError: the file cannot be opened or has changed.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        length = min(length, tensor.nbytes - offset)
        if length <= 0:  # zero would mean up to the end of the file
            return
        file = self._acquire(tensor)
        try:
            position = tensor.offset + offset
            os.posix_fadvise(file.descriptor, position, length, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass
        finally:
            self._release(file, 0)

    def close(self) -> None:
        """Close all files, even when one of them was changed.

        Raises:
            CheckpointError: a file was changed while it was being read.
        """
        problems: list[Problem] = []
        with self._lock:
            while self._open:
                _, file = self._open.popitem()
                try:
                    _close(file)
                except CheckpointError as error:
                    problems.extend(error.problems)
        if problems:
            raise CheckpointError(problems)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else the first failure is the one to show
                raise

    def _acquire(self, tensor: StoredTensor) -> _OpenFile:
        with self._lock:
            file = self._open.get(tensor.file)
            if file is None:
                self._evict(self._limit - 1)
                file = self._open[tensor.file] = self._open_file(tensor)
            elif tensor.stamp is not file.stamp and tensor.stamp != file.stamp:
                _changed(tensor.file)
            else:
                self._open.move_to_end(tensor.file)
            file.users += 1
        return file

    def _release(self, file: _OpenFile, length: int) -> None:
        with self._lock:
            file.users -= 1
            self._bytes_read += length

    def _evict(self, keep: int) -> bool:
        """Close files that nobody uses, longest unused first, until `keep` are left, if it can."""
        idle = [file for file in self._open.values() if not file.users]
        surplus = idle[: max(0, len(self._open) - keep)]
        for file in surplus:
            del self._open[file.path]
            _close(file)
        return bool(surplus)

    def _open_file(self, tensor: StoredTensor) -> _OpenFile:
        while True:
            try:
                descriptor = os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                # the process may have a lower limit than ours: make room and try again
                scarce = error.errno in (errno.EMFILE, errno.ENFILE)
                if not (scarce and self._evict(len(self._open) // 2)):
                    _failed(tensor.file, error)
        file = _OpenFile(tensor.file, descriptor, tensor.stamp)
        if _is_another(file):
            os.close(descriptor)
            _changed(tensor.file)
        return file


def _is_another(file: _OpenFile) -> bool:
    if file.stamp is None:
        return False
    status = os.fstat(file.descriptor)
    return (status.st_size, status.st_mtime_ns) != (
        file.stamp.size,
        file.stamp.mtime_ns,
    )


def _close(file: _OpenFile) -> None:
    try:
        changed = _is_another(file)
    finally:
        os.close(file.descriptor)
    if changed:
        _changed(file.path)


def _changed(path: Path) -> NoReturn:
    raise CheckpointError(
        Problem("has changed since its header was read", where=str(path), hint=_CHANGED_HINT)
    )


def _ended(tensor: StoredTensor, position: int) -> NoReturn:
    raise CheckpointError(
        Problem(
            f"ends at byte {position}, inside tensor {tensor.name!r}, though it was whole when "
            "its header was read",
            where=str(tensor.file),
            hint=_CHANGED_HINT,
        )
    )


def _failed(path: Path, error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    hint = ""
    if error.errno == errno.EIO:
        hint = "the disk reports damage; copy or download the file again"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise the limit of open files (ulimit -n)"
    raise CheckpointError(
        Problem(f"cannot be read: {reason}", where=str(path), hint=hint)
    ) from error
