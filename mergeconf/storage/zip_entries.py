"""Which entries does a zip archive hold, and where do their bytes lie? Reads no entry.

torch.save writes zip archives whose entries are not compressed, so that each is a range of the
file. The reader is ours because the standard library's gives no offsets and lets pass what two
readers may understand differently. Refused are compressed and encrypted entries, two entries of a
name, entries that overlap, and sizes and names that differ between the directory at the archive's
end and the header before an entry.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mergeconf.errors import CheckpointError, Problem
from mergeconf.storage.safetensors_in import FileStamp

MAX_ENTRIES = 250_000
"""Most entries of an archive that is read; each takes a read of its header."""
MAX_DIRECTORY_BYTES = 100_000_000
"""Longest directory that is read, in bytes."""

_END = struct.Struct("<4s4H2LH")  # disks, entries, the directory's size and offset, a comment
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_FULL = 0xFFFFFFFF
"""In a field of 32 bits: the value stands in the record of ZIP64."""
_ENCRYPTED = 0x2041
"""Flags of an entry that is encrypted, in one of the three ways."""
_SIZES_FOLLOW = 0x0008
"""Flag of an entry whose header has no sizes, because they were written after it."""

_DAMAGED = "an interrupted download is the likely cause; download the file again"


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry of an archive: a range of its file."""

    name: str
    offset: int
    """Where its first byte lies, in bytes from the start of the file."""
    nbytes: int
    """Length in bytes."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """An entry as the directory lists it."""

    name: bytes
    header: int
    """Where the header before its bytes lies."""
    nbytes: int


def read_entries(descriptor: int, stamp: FileStamp) -> dict[str, ZipEntry]:
    """Return an archive's entries by name, having checked that they do not overlap.

    Raises:
        CheckpointError: the archive is damaged, or has what torch.save does not write.
        OSError: the file cannot be read.
    """
    path = stamp.path
    start, size, count = _find_directory(descriptor, stamp)
    directory = os.pread(descriptor, size, start)
    listed = sorted(_listed(directory, count, path), key=lambda entry: entry.header)
    entries: dict[str, ZipEntry] = {}
    position, before = 0, ""
    for item in listed:
        name = _decoded(item.name)
        if name in entries:
            _refuse(path, f"holds two entries called {name!r}")
        if item.header < position:
            _refuse(path, f"has entries that overlap: {before!r} and {name!r}")
        begin = _begin_of(descriptor, item, name, path)
        position, before = begin + item.nbytes, name
        if position > start:
            _refuse(path, f"entry {name!r} reaches beyond the archive's entries", _DAMAGED)
        entries[name] = ZipEntry(name, begin, item.nbytes)
    return entries


def _refuse(path: Path, message: str, hint: str = "") -> NoReturn:
    raise CheckpointError(Problem(message, where=str(path), hint=hint))


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


# --- directory --------------------------------------------------------------------------------


def _find_directory(descriptor: int, stamp: FileStamp) -> tuple[int, int, int]:
    """Return where the directory starts, its length in bytes, and its number of entries."""
    path = stamp.path
    reach = min(stamp.size, _END.size + _LONGEST_COMMENT)
    tail = os.pread(descriptor, reach, stamp.size - reach)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        _refuse(path, "is truncated: a zip archive ends with a directory, this file not", _DAMAGED)
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        _refuse(path, "has bytes after the end of its zip archive, or lacks some", _DAMAGED)
    end = stamp.size - reach + at
    found = _read_end_64(descriptor, end, path)
    if found is None:
        if disk or first_disk or here != count:
            _refuse(path, "is one part of a zip archive that was split")
    else:
        narrow = ((size, _FULL), (start, _FULL), (count, 0xFFFF))
        for wide, (value, full) in zip(found[1:], narrow, strict=True):
            if value not in (wide, full):
                _refuse(path, "has a damaged zip directory: its two ends differ", _DAMAGED)
        end, size, start, count = found
    if start + size != end:
        _refuse(
            path,
            f"has a damaged zip directory: it is said to lie at bytes {start} to {start + size}, "
            f"and must end at byte {end}",
            _DAMAGED,
        )
    if size > MAX_DIRECTORY_BYTES or count > MAX_ENTRIES:
        _refuse(path, f"has a zip directory of {count} entries in {size} bytes: too many")
    return start, size, count


def _read_end_64(descriptor: int, end: int, path: Path) -> tuple[int, int, int, int] | None:
    """Return where the ZIP64 end record lies, and the directory's size, offset and entries."""
    locator = os.pread(descriptor, _LOCATOR_64.size, max(0, end - _LOCATOR_64.size))
    if len(locator) < _LOCATOR_64.size or not locator.startswith(b"PK\x06\x07"):
        return None
    _, disk, at, disks = _LOCATOR_64.unpack(locator)
    if at + _END_64.size + _LOCATOR_64.size != end or disk or disks > 1:
        _refuse(path, "has a damaged zip directory: its ZIP64 record is not where it must be")
    record = os.pread(descriptor, _END_64.size, at)
    if len(record) < _END_64.size or not record.startswith(b"PK\x06\x06"):
        _refuse(path, "has a damaged zip directory: its ZIP64 record is missing")
    _, length, _, _, disk, first_disk, here, count, size, start = _END_64.unpack(record)
    if length != _END_64.size - 12 or disk or first_disk or here != count:
        _refuse(path, "has a damaged zip directory: its ZIP64 record makes no sense")
    return at, size, start, count


def _listed(directory: bytes, count: int, path: Path) -> Iterator[_Listed]:
    """Yield the entries that a directory lists."""
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(directory):
            _refuse(path, f"has a damaged zip directory: it must list {count} entries", _DAMAGED)
        fields = _ENTRY.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, _, packed, nbytes, names, extras, comments = fields[:13]
        disk, header = fields[13], fields[16]
        begin = position + _ENTRY.size
        position = begin + names + extras + comments
        if magic != b"PK\x01\x02" or position > len(directory):
            _refuse(path, "has a damaged zip directory", _DAMAGED)
        name = directory[begin : begin + names]
        extra = directory[begin + names : begin + names + extras]
        nbytes, packed, header = _widened(nbytes, packed, header, extra, name, path)
        if method or packed != nbytes:
            _refuse(
                path,
                f"entry {_decoded(name)!r} is compressed, which torch.save never does",
                "unpack the archive and zip it again without compression, or load the weights "
                "with torch and save them as safetensors",
            )
        if flags & _ENCRYPTED or disk not in (0, 0xFFFF):
            _refuse(path, f"entry {_decoded(name)!r} is encrypted or lies in another file")
        yield _Listed(name, header, nbytes)
    if position != len(directory):
        _refuse(path, f"has a damaged zip directory: it lists more than {count} entries", _DAMAGED)


def _widened(
    nbytes: int, packed: int, header: int, extra: bytes, name: bytes, path: Path
) -> tuple[int, int, int]:
    """Replace the fields that are full by those of 64 bits that stand among the extra fields."""
    fields = [nbytes, packed, header]
    wide = [index for index, value in enumerate(fields) if value == _FULL]
    if not wide:
        return nbytes, packed, header
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1 and length >= 8 * len(wide) and position + length <= len(extra):
            values = struct.unpack_from(f"<{len(wide)}Q", extra, position)
            for index, value in zip(wide, values, strict=True):
                fields[index] = value
            return fields[0], fields[1], fields[2]
        position += length
    _refuse(path, f"entry {_decoded(name)!r} lacks its ZIP64 sizes", _DAMAGED)


# --- headers before entries -------------------------------------------------------------------


def _begin_of(descriptor: int, item: _Listed, name: str, path: Path) -> int:
    """Return where an entry's bytes begin, having compared its header with the directory."""
    # an offset beyond 2^63 would be an error of the system's call
    text = os.pread(descriptor, _LOCAL.size + len(item.name), min(item.header, 2**62))
    if len(text) < _LOCAL.size + len(item.name) or not text.startswith(b"PK\x03\x04"):
        _refuse(path, f"entry {name!r} is not where the zip directory says", _DAMAGED)
    _, _, flags, method, _, _, _, packed, nbytes, names, extras = _LOCAL.unpack_from(text)
    sizes = {packed, nbytes} - {_FULL}
    if flags & _SIZES_FOLLOW:
        sizes.discard(0)
    if method or text[_LOCAL.size :] != item.name or names != len(item.name):
        _refuse(path, f"entry {name!r} has a header that differs from the zip directory")
    if sizes - {item.nbytes}:
        _refuse(path, f"entry {name!r} has a size that differs from the zip directory")
    return item.header + _LOCAL.size + len(item.name) + int(extras)
