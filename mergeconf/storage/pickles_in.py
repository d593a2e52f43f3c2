"""Which tensors does a file of torch.save hold, and where do their bytes lie? Runs no code of it.

Two formats are read. Since version 1.6 torch writes a zip archive: `data.pkl` describes the state
dict, and each storage is an entry that is not compressed. Before, it wrote pickles one after
another (a magic number, the state dict, the storages' names) and then the storages. Either way a
contiguous tensor is a range of bytes in the file, as in safetensors.

A pickle may name what `torch.load(weights_only=True)` takes by itself; one that names anything else
is refused. A state dict may lie one level deep, under `state_dict` or `model`; what lies beside it
is left out with a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Mapping as Table
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.storage.safetensors_in import (
    FOREIGN,
    FileStamp,
    Header,
    StoredTensor,
    open_stamped,
)
from mergeconf.storage.state_dict import (
    StateDict,
    Storage,
    is_allowed,
    read_state_dict,
    read_storage,
    shown,
)
from mergeconf.storage.unpickle import (
    EndedEarly,
    Mapping,
    Persistent,
    Unpickled,
    UnsoundPickle,
    WantsCode,
    unpickle,
)
from mergeconf.storage.zip_entries import ZipEntry, read_entries
from mergeconf.units import format_size

MAX_PICKLE_BYTES = 64 * 2**20
"""Longest pickle that is read, in bytes; a tensor takes about 150."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that a file of torch before 1.6 starts with."""
_VERSION = 1001
_WINDOW = 2**20
"""Bytes of such a file that are read first, in search of the end of its pickles."""
_RESAVE = "load it with torch where you trust it, and save its state dict as safetensors"
_DAMAGED = "an interrupted download is the likely cause; download the file again"


@dataclass(frozen=True, slots=True)
class _Range:
    """Where a storage lies in the file."""

    offset: int
    nbytes: int


def read_pickled(path: Path) -> Header:
    """Return what a file of torch.save holds, without its metadata: such files have none.

    Raises:
        CheckpointError: the file cannot be read, is damaged, holds no state dict, wants to run
            code, or has tensors that are no ranges of bytes.
    """
    with open_stamped(path) as (descriptor, stamp):
        start = os.pread(descriptor, 512, 0)
        try:
            if start.startswith(b"PK\x03\x04"):
                pickled, ranges = _read_zip(descriptor, stamp)
            elif start.startswith(b"\x80"):
                pickled, ranges = _read_legacy(descriptor, stamp)
            else:
                _refuse_foreign(start, stamp)
            return _header(read_state_dict(pickled), ranges, stamp)
        except WantsCode as error:
            _refuse_code(path, error.names)
        except EndedEarly as error:
            _refuse(path, f"has a damaged pickle: it {error}", _DAMAGED)
        except UnsoundPickle as error:
            _refuse(path, str(error), _RESAVE)
        except MemoryError:
            _refuse(path, "describes more than fits into memory")


def _refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    raise CheckpointError(Problem(message, where=str(path), hint=hint)) from None


def _refuse_code(path: Path, names: list[str]) -> NoReturn:
    shown = [name if name.isprintable() else ascii(name) for name in names]
    shown = [name if len(name) <= 100 else f"{name[:97]}..." for name in shown]
    hint = f"nothing of it was run; {_RESAVE}"
    if any(name.startswith(("torch.nn.modules.", "transformers.")) for name in names):
        hint = f"it holds more than weights, perhaps a whole model; {_RESAVE}"
    _refuse(path, f"is a pickle that wants to run code: {listed(shown, most=5)}", hint)


def _refuse_foreign(start: bytes, stamp: FileStamp) -> NoReturn:
    if not start:
        _refuse(stamp.path, "is empty", _DAMAGED)
    if start.startswith(b"version https://git-lfs"):
        _refuse(
            stamp.path, "is a git-lfs pointer, not the weights", "run git lfs pull in its folder"
        )
    hint = next((hint for magic, hint in FOREIGN if start.startswith(magic)), "")
    if start[257:262] == b"ustar":
        hint = f"it is a tar archive, as torch 0.1 wrote; {_RESAVE}"
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < stamp.size:
        hint = "it looks like a safetensors file; give it that ending"
    _refuse(stamp.path, "is no file that torch.save wrote", hint)


# --- zip --------------------------------------------------------------------------------------


def _read_zip(descriptor: int, stamp: FileStamp) -> tuple[object, dict[str, _Range]]:
    """Return what the pickle of an archive describes, and where its storages lie."""
    path = stamp.path
    entries = read_entries(descriptor, stamp)
    folder = next(iter(entries), "").partition("/")[0] + "/"
    if f"{folder}constants.pkl" in entries:
        _refuse(path, "is a TorchScript program, not a state dict", _RESAVE)
    entry = entries.get(f"{folder}data.pkl")
    if entry is None:
        _refuse(path, "is a zip archive that torch.save did not write: it has no data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None:
        written = _content(descriptor, order, path)
        if written != b"little":
            _refuse(path, f"holds numbers of byte order {written.decode('latin-1')[:20]!a}; "
                    "only little is read", _RESAVE)  # fmt: skip
    pickled = unpickle(_content(descriptor, entry, path), is_allowed)
    prefix = f"{folder}data/"
    ranges = {
        name.removeprefix(prefix): _Range(found.offset, found.nbytes)
        for name, found in entries.items()
        if name.startswith(prefix)
    }
    for storage in _storages(pickled.references).values():
        place = ranges.get(storage.key)
        if place is None:
            _refuse(path, f"lacks storage {shown(storage.key)}", _DAMAGED)
        # bytes that make no whole element may be left at the end
        if not 0 <= place.nbytes - storage.nbytes < storage.itemsize:
            raise UnsoundPickle(
                f"has {place.nbytes} bytes for storage {shown(storage.key)}, which needs "
                f"{storage.nbytes}"
            )
    return pickled.value, ranges


def _content(descriptor: int, entry: ZipEntry, path: Path) -> bytes:
    if entry.nbytes > MAX_PICKLE_BYTES:
        _refuse(
            path,
            f"entry {entry.name!r} has {format_size(entry.nbytes)}, over the limit of "
            f"{format_size(MAX_PICKLE_BYTES)}",
            _RESAVE,
        )
    content = os.pread(descriptor, entry.nbytes, entry.offset)
    if len(content) < entry.nbytes:
        _refuse(path, f"ends within entry {entry.name!r}", _DAMAGED)
    return content


def _storages(references: Iterable[Persistent]) -> dict[str, Storage]:
    """Return the storages that are referred to, by key; each may be of one kind only."""
    storages: dict[str, Storage] = {}
    for reference in references:
        storage = read_storage(reference)
        if storages.setdefault(storage.key, storage) != storage:
            raise UnsoundPickle(f"refers to storage {shown(storage.key)} in two ways")
    return storages


# --- before torch 1.6 -------------------------------------------------------------------------


def _read_legacy(descriptor: int, stamp: FileStamp) -> tuple[object, dict[str, _Range]]:
    """Return what the pickle of a file of old describes, and where its storages lie."""
    window = _WINDOW
    while True:
        data = os.pread(descriptor, window, 0)
        try:
            pickled, keys, position = _read_pickles(data)
            break
        except EndedEarly:
            if len(data) < window:
                raise
            if window >= MAX_PICKLE_BYTES:
                limit = format_size(MAX_PICKLE_BYTES)
                _refuse(stamp.path, f"has a pickle of more than {limit}", _RESAVE)
            window *= 4
    storages = _storages(pickled.references)
    if sorted(storages) != sorted(keys):
        raise UnsoundPickle("holds other storages than its pickle refers to")
    ranges: dict[str, _Range] = {}
    for key in keys:
        storage = storages[key]
        count = os.pread(descriptor, 8, position)
        end = position + 8 + storage.nbytes
        if end > stamp.size or len(count) < 8:
            _refuse(stamp.path, f"is truncated: it ends within storage {shown(key)}", _DAMAGED)
        if int.from_bytes(count, "little") != storage.numel:
            raise UnsoundPickle(f"has another size for storage {shown(key)} than its pickle says")
        ranges[storage.key] = _Range(position + 8, storage.nbytes)
        position = end
    if position < stamp.size:
        _refuse(stamp.path, f"has {stamp.size - position} bytes after its last storage", _DAMAGED)
    return pickled.value, ranges


def _read_pickles(data: bytes) -> tuple[Unpickled, list[str], int]:
    """Return the state dict, the storages' keys, and where the pickles end."""
    magic = unpickle(data, is_allowed)
    if magic.value != _MAGIC:
        raise UnsoundPickle("is a Python pickle that torch.save did not write")
    version = unpickle(data, is_allowed, magic.end)
    if version.value != _VERSION:
        raise UnsoundPickle("is of a version of torch's format that is not known")
    system = unpickle(data, is_allowed, version.end)
    facts = system.value.items if isinstance(system.value, Mapping) else []
    if ("little_endian", True) not in facts:
        raise UnsoundPickle("holds numbers of byte order 'big'; only little is read")
    state = unpickle(data, is_allowed, system.end)
    keys = unpickle(data, is_allowed, state.end)
    if not isinstance(keys.value, list) or not all(type(key) is str for key in keys.value):
        raise UnsoundPickle("has no list of its storages")
    return state, keys.value, keys.end


# --- header -----------------------------------------------------------------------------------


def _header(state: StateDict, ranges: Table[str, _Range], stamp: FileStamp) -> Header:
    if state.unreadable:
        raise CheckpointError(
            Problem(
                f"{len(names)} tensors cannot be read, as each {reason}: {listed(names, most=5)}"
                if len(names) > 1
                else f"tensor {names[0]} cannot be read: it {reason}",
                where=str(stamp.path),
                hint="save it again after tensor.contiguous()" if "contiguous" in reason else "",
            )
            for reason, names in state.unreadable.items()
        )
    tensors = [
        StoredTensor(
            view.name,
            view.dtype,
            view.shape,
            stamp.path,
            ranges[view.storage.key].offset + view.start,
            view.nbytes,
            stamp,
        )
        for view in state.views
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    warnings: tuple[Problem, ...] = ()
    if state.left_out:
        warnings = (
            Problem(
                f"holds more than the tensors of a state dict, which is not read: "
                f"{listed(list(dict.fromkeys(state.left_out)), most=5)}",
                where=str(stamp.path),
                severity="warning",
                code="unread-entries",
            ),
        )
    return Header({tensor.name: tensor for tensor in tensors}, {}, stamp, warnings)
