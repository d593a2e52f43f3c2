"""Digests of inputs and outputs, taken while a run goes on and their bytes are still in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mergeconf.lock.cache import DigestCache
from mergeconf.lock.digest import PIECE, digest_stored, digest_tensor
from mergeconf.plan import Plan, TensorPlan
from mergeconf.storage.output import OutputWriter
from mergeconf.storage.read_files import ReadFiles
from mergeconf.storage.safetensors_in import StoredTensor


class InputDigests:
    """Digests of stored tensors, each taken once. Thread-safe."""

    def __init__(self, reads: ReadFiles, cache: DigestCache) -> None:
        self.found: dict[StoredTensor, str] = {}
        self._reads, self._cache = reads, cache
        self._lock = threading.Lock()
        self._taken: set[StoredTensor] = set()
        self._buffers = threading.local()

    def buffer(self) -> memoryview:
        """Return this thread's memory for a piece."""
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(PIECE))
        view: memoryview = self._buffers.view
        return view

    def take(self, tensors: Iterable[StoredTensor]) -> None:
        """Take the digests of tensors that nobody else has taken.

        Raises:
            CheckpointError: a file cannot be read, or has changed.
        """
        for stored in tensors:
            with self._lock:
                if stored in self._taken:
                    continue
                self._taken.add(stored)
                known = self._cache.get(stored)
            digest = known or digest_stored(stored, self._reads.read_into, self.buffer())
            with self._lock:
                self.found[stored] = digest
                if known is None:
                    self._cache.put(stored, digest)


class Recorder:
    """Stands between executor and writer: each tensor that is finished gets its digest."""

    def __init__(self, plan: Plan, writer: OutputWriter, inputs: InputDigests) -> None:
        self.outputs: dict[str, str] = {}
        """Digests of output tensors by name."""
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._writer, self._inputs = writer, inputs

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        """Take bytes of a tensor, at an offset in it."""
        self._writer.write(name, offset, buffer)

    def finish(self, name: str) -> None:
        """Know that all bytes of a tensor have been written."""
        self._record(self._tensors[name])
        self._writer.finish(name)

    def complete(self) -> None:
        """Take the digests of what an earlier run had finished."""
        for name, tensor in self._tensors.items():
            if name not in self.outputs:
                self._record(tensor)

    def _record(self, tensor: TensorPlan) -> None:
        def read(offset: int, piece: memoryview) -> None:
            self._writer.read_into(tensor.name, offset, piece)

        self.outputs[tensor.name] = digest_tensor(
            tensor.dtype, tensor.shape, tensor.nbytes, read, self._inputs.buffer()
        )
        self._inputs.take(tensor.inputs)
