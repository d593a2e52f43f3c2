"""What does one model consist of: tensors, config, small files, warnings?"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeconf.checkpoint.sidecars import Sidecar, SidecarKind, find_sidecars
from mergeconf.checkpoint.weights import read_weights
from mergeconf.errors import CheckpointError, Problem
from mergeconf.storage.safetensors_in import FileStamp, StoredTensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's headers and small files."""

    label: str
    """What messages call it."""
    folder: Path
    """Folder of its files, as it was given; for a single file, the folder that holds it."""
    tensors: dict[str, StoredTensor]
    """Tensors by name, in file order."""
    metadata: dict[str, str]
    """The free text of its weight files."""
    config: dict[str, Any] | None
    """Content of config.json, or None where there is none."""
    sidecars: tuple[Sidecar, ...]
    """Small files that belong to the model, config.json included, by name."""
    files: tuple[FileStamp, ...]
    """Its weight files when their headers were read, by name."""
    warnings: tuple[Problem, ...]
    """What was found and does not stand in the way."""

    @property
    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size in bytes and time of change in ns of each weight file: what resuming trusts.

        Names are without folders: a model that was moved, times kept, is still the same.
        """
        return tuple((file.path.name, file.size, file.mtime_ns) for file in self.files)

    def sidecars_of(self, *kinds: SidecarKind) -> tuple[Sidecar, ...]:
        """Return the small files of some kinds."""
        return tuple(sidecar for sidecar in self.sidecars if sidecar.kind in kinds)


def open_checkpoint(path: Path, label: str) -> Checkpoint:
    """Return what a model consists of; reads headers and small text files only.

    A single file has a config and small files where it is the only model of its folder.

    Args:
        path: a folder, an index file, one .safetensors file or one file of torch.save.
        label: what messages call it.

    Raises:
        CheckpointError: all that is missing, damaged or not understood.
    """
    folder, weights, alone = read_weights(path)
    config: dict[str, Any] | None = None
    sidecars: list[Sidecar] = []
    warnings = weights.warnings
    if alone:
        try:
            sidecars, more = find_sidecars(folder)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CheckpointError(
                Problem(f"cannot be read: {reason}", where=str(folder))
            ) from error
        warnings = [*warnings, *more]
        config = _read_config(sidecars)
    return Checkpoint(
        label=label,
        folder=folder,
        tensors=weights.tensors,
        metadata=weights.metadata,
        config=config,
        sidecars=tuple(sidecars),
        files=tuple(weights.files),
        warnings=tuple(warnings),
    )


def _read_config(sidecars: Iterable[Sidecar]) -> dict[str, Any] | None:
    path = next((sidecar.path for sidecar in sidecars if sidecar.kind == "config"), None)
    if path is None:
        return None
    try:
        # a byte order mark, NaN and repeated names are let pass, as transformers does
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        message = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise CheckpointError(Problem(message, where=str(path))) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(Problem(f"is no sound JSON: {error}", where=str(path))) from error
    if not isinstance(content, dict):
        raise CheckpointError(Problem("is not a JSON object", where=str(path)))
    return content
