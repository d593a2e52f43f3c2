"""Is an output still what its lock says? Every tensor's bytes and every small file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergeconf.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.lock.cache import NoCache
from mergeconf.lock.data import NAME, Lock, LockedTensor, read_lock
from mergeconf.lock.digest import digest_bytes
from mergeconf.lock.record import InputDigests
from mergeconf.storage.read_files import ReadFiles


@dataclass(frozen=True, slots=True)
class Verified:
    """What a look at an output has found."""

    lock: Lock
    tensors: int
    """How many tensors were compared."""
    nbytes: int
    """Their bytes."""
    problems: tuple[Problem, ...]
    recomputed: int = 0
    """How many tensors were computed again from the inputs."""
    """All that is not as the lock says."""


def verify_files(folder: Path) -> Verified:
    """Compare an output's tensors and small files with its lock.

    Raises:
        LockError: there is no sound lock.
    """
    lock = read_lock(folder / NAME)
    problems = list(_small_files(folder, lock))
    try:
        found = open_checkpoint(folder, str(folder))
    except CheckpointError as error:
        return Verified(lock, 0, 0, (*problems, *error.problems))
    problems += _names(found, lock)
    there = [(found.tensors[name], item) for name, item in lock.tensors.items()
             if name in found.tensors]  # fmt: skip
    with ReadFiles() as reads:
        digests = InputDigests(reads, NoCache())
        for stored, item in there:
            problems += _tensor(stored, item, digests)
    return Verified(lock, len(there), sum(stored.nbytes for stored, _ in there), tuple(problems))


def _tensor(stored: StoredTensor, item: LockedTensor, digests: InputDigests) -> Iterator[Problem]:
    if (stored.dtype.name, stored.shape) != (item.dtype, item.shape):
        yield Problem(
            f"is {stored.dtype.name} {list(stored.shape)}, and {item.dtype} {list(item.shape)} in "
            "the lock",
            where=stored.name,
        )
        return
    try:
        digests.take([stored])
    except CheckpointError as error:
        yield from error.problems
        return
    if digests.found[stored] != item.digest:
        yield Problem(f"has other bytes than the lock says, in {stored.file.name}", stored.name)


def _names(found: Checkpoint, lock: Lock) -> Iterator[Problem]:
    missing = [name for name in lock.tensors if name not in found.tensors]
    if missing:
        yield Problem(f"tensors of the lock are missing: {listed(missing)}")
    added = [name for name in found.tensors if name not in lock.tensors]
    if added:
        yield Problem(f"tensors are there that the lock does not name: {listed(added)}")


def _small_files(folder: Path, lock: Lock) -> Iterator[Problem]:
    for name, digest in lock.files.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            yield Problem((error.strerror or str(error)).lower(), where=name)
            continue
        if digest_bytes(content) != digest:
            yield Problem("is not the file that the run wrote", where=name)
