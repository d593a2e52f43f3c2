"""Which tensors of a staging folder are finished and durable? A text file, one line a tensor.

Each line is a checksum and a JSON text. The first names the run (its fingerprint), each further
one a tensor that is on disk. A line that does not match its checksum ends what is believed: a
kill or a power cut can tear the last line, and nothing after a damaged one can be trusted.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from mergeconf.storage.target import sync_folder

NAME = ".mergeconf-journal"
"""Name of the file, in the staging folder."""
_FORMAT = "mergeconf journal 1: "


class Journal:
    """The journal of the run at hand, to which lines are added."""

    def __init__(self, folder: Path, fingerprint: str, finished: Iterable[str]) -> None:
        """Write a journal anew, at once, with what is finished already.

        Raises:
            OSError: it cannot be written.
        """
        self.path = folder / NAME
        self._fingerprint = fingerprint
        self._descriptor = -1
        self.rewrite(finished)

    def rewrite(self, finished: Iterable[str]) -> None:
        """Put a new journal with these tensors in the place of the old one, durably.

        Raises:
            OSError: it cannot be written.
        """
        self.close()
        fresh = self.path.with_name(NAME + "-new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(fresh, flags, 0o666)
        try:
            self._append([_FORMAT + self._fingerprint, *finished])
            os.fsync(self._descriptor)
            fresh.rename(self.path)
            sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def add(self, names: Iterable[str]) -> None:
        """Write down tensors whose bytes are durable.

        The lines themselves are not synced: losing them costs work, not correctness.

        Raises:
            OSError: they cannot be written.
        """
        self._append(names)

    def remove(self) -> None:
        """Delete the file.

        Raises:
            OSError: it cannot be deleted.
        """
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _append(self, texts: Iterable[str]) -> None:
        data = b"".join(map(_line, texts))
        while data:
            data = data[os.write(self._descriptor, data) :]


def read_journal(folder: Path, fingerprint: str) -> list[str] | None:
    """Return the finished tensors of a run with that fingerprint; None where there is none.

    Raises:
        OSError: the file is there but cannot be read.
    """
    try:
        content = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    names: list[str] = []
    for number, line in enumerate(content.split(b"\n")[:-1]):  # what follows the last is torn
        text = _text(line)
        if number == 0:
            if text != _FORMAT + fingerprint:
                return None
        elif text is None:
            break
        else:
            names.append(text)
    return names if content.count(b"\n") else None


def _line(text: str) -> bytes:
    data = json.dumps(text).encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _text(line: bytes) -> str | None:
    checksum, _, data = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(data):
        return None
    try:
        text = json.loads(data)
    except ValueError:
        return None
    return text if isinstance(text, str) else None
