"""Files as torch.save writes them, and as nobody should."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergeconf.checkpoint import ReadFiles
from mergeconf.dtypes import DType
from mergeconf.storage.safetensors_in import Header

NUMPY_FREE = {dtype: getattr(torch, dtype.name) for dtype in DType if hasattr(torch, dtype.name)}
"""torch's dtype of each format that this version of torch has."""


def save(path: Path, value: Any, *, legacy: bool = False, protocol: int = 2) -> Path:
    """Write a value with torch.save, in one of its two formats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy
    )  # fmt: skip
    return path


def archive(
    path: Path,
    data: bytes | None,
    storages: Mapping[str, bytes] | None = None,
    *,
    more: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a zip archive as torch.save lays it out, with any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        if data is not None:
            file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
        for name, content in (more or {}).items():
            file.writestr(name, content)
    return path


def parts(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the pickle and the storages of a zip archive of torch.save."""
    with zipfile.ZipFile(path) as file:
        folder = file.namelist()[0].partition("/")[0]
        prefix = f"{folder}/data/"
        names = [name for name in file.namelist() if name.startswith(prefix)]
        contents = {name.removeprefix(prefix): file.read(name) for name in names}
        return file.read(f"{folder}/data.pkl"), contents


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes, of any format."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def read(header: Header) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return format, shape and bytes of all tensors of a file."""
    found = {}
    with ReadFiles() as files:
        for name, tensor in header.tensors.items():
            buffer = bytearray(tensor.nbytes)
            files.read_into(tensor, 0, memoryview(buffer))
            found[name] = (tensor.dtype.name, tensor.shape, bytes(buffer))
    return found


def wanted(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return what reading these tensors must give."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), raw(tensor))
        for name, tensor in tensors.items()
    }


def saved(value: Any, *, legacy: bool = False) -> bytes:
    """Return the file that torch.save would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()
