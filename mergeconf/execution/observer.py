"""How a run tells others what it does: the core never prints."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Told about a run as it goes; called from worker threads, so it has to be quick."""

    def started(self, total_bytes: int, done_bytes: int) -> None:
        """A run begins: bytes to be written, and how many an earlier, stopped run has written."""

    def advanced(self, output_bytes: int) -> None:
        """So many more bytes of output tensors are computed and handed to the system."""

    def finished_tensor(self, name: str) -> None:
        """An output tensor is complete."""

    def syncing(self) -> None:
        """All is computed; what remains is waiting for the disk."""


class Silent:
    """An observer that does nothing."""

    def started(self, total_bytes: int, done_bytes: int) -> None:
        """Do nothing."""

    def advanced(self, output_bytes: int) -> None:
        """Do nothing."""

    def finished_tensor(self, name: str) -> None:
        """Do nothing."""

    def syncing(self) -> None:
        """Do nothing."""
