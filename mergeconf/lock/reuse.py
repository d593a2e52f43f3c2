"""What of an output that is already there can stay? Tensors that would be made the same way."""

from __future__ import annotations

from pathlib import Path

from mergeconf.checkpoint import Checkpoint, open_checkpoint
from mergeconf.errors import CheckpointError, LockError, OutputError, Problem
from mergeconf.lock.data import NAME, Lock, read_lock
from mergeconf.lock.digest import TensorDigest, digest_bytes
from mergeconf.lock.make import Digests, Makers
from mergeconf.lock.record import InputDigests
from mergeconf.plan import Plan
from mergeconf.storage.output import OutputWriter
from mergeconf.storage.read_files import ReadFiles


def lock_at(target: Path) -> Lock | None:
    """Return the sound lock of an output folder, or None where there is none."""
    try:
        return read_lock(target / NAME)
    except LockError:
        return None


def same_tensors(plan: Plan, lock: Lock, digests: Digests) -> frozenset[str]:
    """Return the names of the tensors that would be made as those of a lock were."""
    makers = Makers(plan)
    return frozenset(
        tensor.name
        for tensor in plan.tensors
        if tensor.name in lock.tensors
        and lock.tensors[tensor.name].made_by == makers.made_by(tensor, digests)
    )


def is_whole(plan: Plan, lock: Lock, target: Path, same: frozenset[str]) -> bool:
    """Tell whether an output is there that a run of the plan would write again, file by file.

    Looks at names and sizes of weight files and at the content of small files; `verify` looks at
    every byte.
    """
    if len(same) < len(plan.tensors) or len(plan.tensors) < len(lock.tensors):
        return False
    try:
        for file in plan.layout.files:
            if (target / file.name).stat().st_size != file.size:
                return False
        for name, item in plan.sidecars.items():
            content = item if isinstance(item, bytes) else item.read_bytes()
            if (target / name).read_bytes() != content:
                return False
    except OSError:
        return False
    return lock.files == {
        name: digest_bytes(item if isinstance(item, bytes) else item.read_bytes())
        for name, item in plan.sidecars.items()
    }


def copy_same(
    target: Path, lock: Lock, same: frozenset[str], writer: OutputWriter, inputs: InputDigests,
    outputs: dict[str, str],
) -> int:  # fmt: skip
    """Copy tensors of an output that is there into one that is written; return how many.

    One whose bytes are not those of the lock is left out: it is computed.
    """
    try:
        old = open_checkpoint(target, str(target))
    except CheckpointError:
        return 0
    count = 0
    with ReadFiles() as reads:
        for name in same:
            if name in writer.finished or name not in old.tensors:
                continue
            digest = _copy(name, old, reads, writer, inputs.buffer())
            if digest == lock.tensors[name].digest:
                writer.finish(name)
                outputs[name] = digest
                count += 1
    return count


def _copy(
    name: str, old: Checkpoint, reads: ReadFiles, writer: OutputWriter, buffer: memoryview
) -> str | None:
    stored = old.tensors[name]
    digest = TensorDigest(stored.dtype, stored.shape)
    try:
        for start in range(0, stored.nbytes, len(buffer)):
            piece = buffer[: min(len(buffer), stored.nbytes - start)]
            reads.read_into(stored, start, piece)
            writer.write(name, start, piece)
            digest.update(piece)
    except (CheckpointError, ValueError):  # damaged, or of another length
        return None
    return digest.text()


def refuse_foreign(target: Path) -> OutputError:
    """Return the error for updating what mergeconf has not made."""
    return OutputError(
        Problem(
            f"holds no sound {NAME}: there is nothing known that could stay",
            where=str(target),
            hint="use --force to write it anew",
        )
    )
