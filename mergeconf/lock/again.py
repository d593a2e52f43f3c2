"""Run what a lock says: is everything still what it was?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mergeconf.checkpoint import Checkpoint
from mergeconf.errors import LockError, Problem, listed
from mergeconf.lock.data import Lock, LockedInput
from mergeconf.lock.make import Digests, Makers, relative
from mergeconf.plan import Plan
from mergeconf.recipe import Recipe, load_locked
from mergeconf.version import VERSION

_SHOWN = 5


def recipe_of(lock: Lock, path: Path) -> Recipe:
    """Return the recipe that a lock holds.

    Args:
        lock: The lock.
        path: Where it lies; the recipe's folder is named from there.
    """
    folder = path.parent / lock.recipe_folder
    return load_locked(lock.recipe_text, folder, lock.recipe_files)


def check_files(lock: Lock, path: Path) -> None:
    """See whether the inputs' files can be those of a lock; looks at their sizes only.

    Args:
        lock: The lock.
        path: Where it lies.

    Raises:
        LockError: one is missing or of another size.
    """
    problems = []
    for locked in lock.inputs:
        folder = Path(os.path.normpath(path.parent / lock.recipe_folder / locked.path))
        if not folder.exists():
            continue  # said when the model is opened, with what lies there instead
        for name, size in locked.files.items():
            found = _size_of(folder / name)
            if found != size:
                there = "missing" if found is None else f"{found:,} bytes long"
                problems.append(
                    Problem(
                        f"{name} is {there}, and {size:,} bytes long in the lock",
                        where=locked.model,
                        hint=f"bring back the {folder} that the lock speaks of",
                    )
                )
    _raise(problems)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def check_inputs(lock: Lock, plan: Plan, digests: Digests) -> None:
    """See whether the inputs' content is that of a lock.

    Raises:
        LockError: it is another, with every tensor's name.
    """
    problems = []
    for locked, checkpoint in _pairs(lock, plan):
        tensors = checkpoint.tensors
        changed = [
            name
            for name, digest in locked.tensors.items()
            if name in tensors and digests.get(tensors[name], digest) != digest
        ]
        if changed:
            problems.append(
                Problem(
                    f"has changed since the lock was written: {listed(changed, _SHOWN)}",
                    where=locked.model,
                    hint=f"bring back the {checkpoint.folder} that the lock speaks of",
                )
            )
    _raise(problems)


def check_plan(lock: Lock, plan: Plan, digests: Digests) -> None:
    """See whether each tensor is made as a lock says.

    Raises:
        LockError: recipe, configs or this version of mergeconf make it otherwise.
    """
    theirs = {name: tensor.made_by for name, tensor in lock.tensors.items()}
    makers = Makers(plan, lock.versions.get("mergeconf", ""))
    ours = {tensor.name: makers.made_by(tensor, digests) for tensor in plan.tensors}
    other = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if other:
        raise LockError(
            Problem(
                f"{len(other)} of {len(ours)} tensors are planned otherwise than the lock says: "
                f"{listed(other, _SHOWN)}",
                hint="a model's config has changed, or the lock is of another version: "
                f"{lock.versions.get('mergeconf')}, and this is {VERSION}",
            )
        )


def check_outputs(lock: Lock, outputs: Mapping[str, str]) -> None:
    """See whether what came out is what a lock says.

    Raises:
        LockError: a tensor has other bits.
    """
    other = [name for name, item in lock.tensors.items() if outputs.get(name) != item.digest]
    if other:
        raise LockError(
            Problem(
                f"{len(other)} of {len(lock.tensors)} tensors came out with other bits than the "
                f"lock says: {listed(other, _SHOWN)}",
                hint=f"the lock was written by mergeconf {lock.versions.get('mergeconf')}, "
                f"this is {VERSION}; nothing was written",
            )
        )


def _pairs(lock: Lock, plan: Plan) -> Iterator[tuple[LockedInput, Checkpoint]]:
    """Yield what a lock says of each input, and what lies there."""
    there = {
        (item.label, relative(item.folder, plan.recipe.folder)): item for item in plan.checkpoints
    }
    for locked in lock.inputs:
        found = there.get((locked.model, locked.path))
        if found is not None:
            yield locked, found


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise LockError(problems)
