"""What does an adapter consist of? A folder in peft's format: its settings and its tensors.

Reads the headers and the config, never a weight. Which tensors of a model an adapter changes is
said by `adapter_match`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mergeconf.checkpoint.adapter_config import AdapterSettings, parse_settings
from mergeconf.checkpoint.missing import explain_missing
from mergeconf.checkpoint.model import Checkpoint
from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.storage.pickles_in import read_pickled
from mergeconf.storage.safetensors_in import FileStamp, Header, StoredTensor, read_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's headers and settings."""

    checkpoint: Checkpoint
    """Its files, tensors and warnings."""
    settings: AdapterSettings

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.checkpoint.label

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Tensors by name, in file order."""
        return self.checkpoint.tensors


def open_adapter(path: Path, label: str) -> Adapter:
    """Return what an adapter consists of; reads its header and its config only.

    Args:
        path: the folder that peft wrote, or the file of weights in it.
        label: what messages call it.

    Raises:
        CheckpointError: all that is missing, damaged, or changes weights in a way that is not
            known here.
    """
    folder = path.parent if path.name in (WEIGHTS_NAME, _PICKLE_NAME) else path
    try:
        if not path.exists():
            raise CheckpointError(explain_missing(path))
        if not folder.is_dir():
            _refuse(path, "is no adapter", f"name the folder that holds {CONFIG_NAME}")
        config, stamp = _read_config(folder)
        settings, warnings = parse_settings(config, folder / CONFIG_NAME)
        header = _read_weights(folder)
    except OSError as error:
        _refuse(folder, f"cannot be read: {(error.strerror or str(error)).lower()}")
    except ValueError as error:  # a NUL character in the path
        _refuse(folder, f"cannot be read: {error}")
    if not header.tensors:
        _refuse(header.stamp.path, "holds no tensor")
    checkpoint = Checkpoint(
        label=label,
        folder=folder,
        tensors=header.tensors,
        metadata=header.metadata,
        config=None,
        sidecars=(),
        files=(header.stamp, stamp),
        warnings=(*header.warnings, *warnings),
    )
    return Adapter(checkpoint, settings)


def _read_config(folder: Path) -> tuple[dict[str, Any], FileStamp]:
    path = folder / CONFIG_NAME
    if not path.exists():
        names = sorted(file.name for file in folder.iterdir())
        if "config.json" in names:
            _refuse(
                folder,
                f"holds a model and no adapter: there is no {CONFIG_NAME}",
                "list it as a model of its own",
            )
        _refuse(
            folder,
            f"holds no {CONFIG_NAME}, only {listed(names, most=6)}" if names else "is empty",
            "an adapter is the folder that peft's save_pretrained writes; without its config the "
            "scale of its weights is not known",
        )
    status = path.stat()
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is no sound JSON: {error}")
    if not isinstance(content, dict):
        _refuse(path, "is not a JSON object")
    return content, FileStamp(path, status.st_size, status.st_mtime_ns)


def _read_weights(folder: Path) -> Header:
    """Read the header of the weights; as peft does, of safetensors where there are both."""
    names = sorted(file.name for file in folder.iterdir() if file.name != CONFIG_NAME)
    if WEIGHTS_NAME not in names and _PICKLE_NAME not in names:
        _refuse(
            folder,
            f"holds no {WEIGHTS_NAME}" + (f", only {listed(names, most=6)}" if names else ""),
            "an interrupted download is the likely cause; download it again",
        )
    if WEIGHTS_NAME in names:
        return read_header(folder / WEIGHTS_NAME)
    return read_pickled(folder / _PICKLE_NAME)


def _refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    raise CheckpointError(Problem(message, where=str(path), hint=hint)) from None
