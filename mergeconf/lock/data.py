"""What does a lock say? Its data, its text, and what is wrong with a text that is no lock.

JSON in one fixed form, so that two locks of the same run are the same file; its last line is the
digest of all before it, so that an edited lock is told from an untouched one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeconf.errors import LockError, Problem
from mergeconf.lock.digest import digest_bytes, digest_data, digest_model
from mergeconf.storage.target import LOCK_NAME

NAME = LOCK_NAME
"""The lock's name in an output folder."""
FORMAT = 1
MOST_BYTES = 1 << 30
"""Largest lock that is read, in bytes."""
_KEY = "mergeconf_lock"
_DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class LockedInput:
    """A checkpoint that was read."""

    model: str
    """What the recipe calls it."""
    path: str
    """Where it lies, from the folder of the recipe."""
    files: Mapping[str, int]
    """Its weight files and their sizes in bytes."""
    tensors: Mapping[str, str]
    """Digests of the tensors that the merge uses, by name."""


@dataclass(frozen=True, slots=True)
class LockedTensor:
    """A tensor of the output."""

    dtype: str
    shape: tuple[int, ...]
    digest: str
    made_by: str
    """Digest of all that decides its bytes: expression, content of the inputs, seed, version."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Everything that identifies a merge: what was asked for, what it was made from, and what
    came out."""

    versions: Mapping[str, str]
    recipe_text: str
    recipe_files: Mapping[str, str]
    """Texts of other recipes that it names, by their path from its folder."""
    recipe_folder: str
    """The recipe's folder, from the folder of the lock."""
    resolved: Mapping[str, Any]
    """The recipe with every default spelled out."""
    inputs: tuple[LockedInput, ...]
    tensors: Mapping[str, LockedTensor]
    """Tensors of the output, by name."""
    files: Mapping[str, str]
    """Digests of the output's small files, by name."""

    @property
    def plan_digest(self) -> str:
        """Digest of the plan: of what makes each tensor."""
        return digest_model({name: tensor.made_by for name, tensor in self.tensors.items()})

    @property
    def output_digest(self) -> str:
        """Digest of the output's weights, whatever files they are arranged in."""
        return digest_model({name: tensor.digest for name, tensor in self.tensors.items()})

    def text(self) -> str:
        """Return the file's content."""
        body = json.dumps(self._data(), indent=1, ensure_ascii=False)
        return f'{body[:-2]},\n "{_DIGEST}": "{digest_bytes(body.encode())}"\n}}\n'

    def _data(self) -> dict[str, Any]:
        return {
            _KEY: FORMAT,
            "versions": dict(self.versions),
            "recipe": {
                "digest": digest_data(self.resolved),
                "text": self.recipe_text,
                "files": dict(sorted(self.recipe_files.items())),
                "folder": self.recipe_folder,
                "resolved": self.resolved,
            },
            "inputs": [
                {
                    "model": item.model,
                    "path": item.path,
                    "digest": digest_model(item.tensors),
                    "files": dict(sorted(item.files.items())),
                    "tensors": dict(sorted(item.tensors.items())),
                }
                for item in self.inputs
            ],
            "plan_digest": self.plan_digest,
            "output": {
                "digest": self.output_digest,
                "files": dict(sorted(self.files.items())),
                "tensors": {
                    name: {
                        "dtype": tensor.dtype,
                        "shape": list(tensor.shape),
                        "digest": tensor.digest,
                        "made_by": tensor.made_by,
                    }
                    for name, tensor in sorted(self.tensors.items())
                },
            },
        }


def read_lock(path: Path) -> Lock:
    """Return the lock in a file.

    Raises:
        LockError: there is none, or it is damaged, edited, or of a version that is not known.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LockError(Problem(f"cannot be read: {reason}", where=str(path))) from None
    try:
        return parse_lock(raw)
    except LockError as error:
        raise LockError(
            [Problem(item.message, str(path), hint=item.hint) for item in error.problems]
        ) from None


def parse_lock(raw: bytes) -> Lock:
    """Return the lock that a file's content is; raises `LockError` where it is none."""
    if len(raw) > MOST_BYTES:
        raise LockError("is too large for a lock")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LockError(f"is no lock: no sound JSON: {error}") from None
    if not isinstance(data, dict) or _KEY not in data:
        raise LockError("is no lock of mergeconf")
    if data[_KEY] != FORMAT:
        raise LockError(
            f"is a lock of format {data[_KEY]!r}, and only {FORMAT} is known here",
            hint="it was written by another version of mergeconf",
        )
    try:
        lock = _from(data)
        same = lock.text().encode() == raw
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise LockError("is damaged: a part that a lock has is missing") from None
    if not same:
        raise LockError(
            "was changed after it was written: its digest is another",
            hint="take the lock as the run wrote it",
        )
    return lock


def _from(data: Mapping[str, Any]) -> Lock:
    recipe, output = data["recipe"], data["output"]
    return Lock(
        versions=data["versions"],
        recipe_text=recipe["text"],
        recipe_files=recipe["files"],
        recipe_folder=recipe["folder"],
        resolved=recipe["resolved"],
        inputs=tuple(
            LockedInput(item["model"], item["path"], dict(item["files"]), dict(item["tensors"]))
            for item in data["inputs"]
        ),
        tensors={
            name: LockedTensor(
                tensor["dtype"], tuple(tensor["shape"]), tensor["digest"], tensor["made_by"]
            )
            for name, tensor in output["tensors"].items()
        },
        files=dict(output["files"]),
    )
