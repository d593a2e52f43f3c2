"""Digests of input tensors that were made before, kept for files that have not changed since.

One small file for each weight file, in the user's cache folder. It saves time and never decides a
bit of a result: a file counts as unchanged by its path, size and time of change, as for `make`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mergeconf.lock.digest import digest_bytes
from mergeconf.storage.safetensors_in import FileStamp, StoredTensor

_FORMAT = 1
_YOUNG_NS = 2 * 10**9
"""A file changed this short before it was hashed may change again within the clock's grain."""


class DigestCache:
    """Known digests, by file and tensor."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when it is first written to."""
        self._folder = folder
        self._files: dict[FileStamp, dict[str, str]] = {}
        self._new: set[FileStamp] = set()

    def get(self, stored: StoredTensor) -> str | None:
        """Return the digest of a tensor, or None where it is not known."""
        if stored.stamp is None:
            return None
        return self._of(stored.stamp).get(_key(stored))

    def put(self, stored: StoredTensor, digest: str) -> None:
        """Remember the digest of a tensor."""
        if stored.stamp is not None:
            self._of(stored.stamp)[_key(stored)] = digest
            self._new.add(stored.stamp)

    def save(self) -> None:
        """Write down what is new, where that is possible."""
        for stamp in self._new:
            if time.time_ns() - stamp.mtime_ns < _YOUNG_NS:
                continue
            with suppress(OSError):
                self._write(stamp)
        self._new.clear()

    def _of(self, stamp: FileStamp) -> dict[str, str]:
        if stamp not in self._files:
            self._files[stamp] = dict(_read(self._place(stamp), stamp))
        return self._files[stamp]

    def _place(self, stamp: FileStamp) -> Path:
        name = digest_bytes(str(stamp.path.resolve()).encode())
        return self._folder / f"{name[-32:]}.json"

    def _write(self, stamp: FileStamp) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, **_identity(stamp), "tensors": self._files[stamp]}
        with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
            json.dump(content, file)
        Path(file.name).replace(self._place(stamp))


class NoCache(DigestCache):
    """Knows nothing and keeps nothing: every byte is looked at."""

    def __init__(self) -> None:
        super().__init__(Path())

    def get(self, stored: StoredTensor) -> str | None:
        """Return None."""
        return None

    def put(self, stored: StoredTensor, digest: str) -> None:
        """Forget the digest."""

    def save(self) -> None:
        """Write nothing."""


def _identity(stamp: FileStamp) -> dict[str, Any]:
    return {"path": str(stamp.path.resolve()), "size": stamp.size, "mtime_ns": stamp.mtime_ns}


def _key(stored: StoredTensor) -> str:
    return f"{stored.name} {stored.offset} {stored.dtype.name} {list(stored.shape)}"


def _read(path: Path, stamp: FileStamp) -> Mapping[str, str]:
    """Return what is known of a file; nothing where it has changed, or the cache is damaged."""
    try:
        content = json.loads(path.read_bytes())
        same = {**_identity(stamp), "format": _FORMAT}
        if any(content[key] != value for key, value in same.items()):
            return {}
        found = content["tensors"]
        return {str(key): str(value) for key, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
