"""Run one expression through the local executor, from real files into memory."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergeconf.checkpoint import ReadFiles, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.execution.local import LocalExecutor, Settings
from mergeconf.execution.observer import Silent
from mergeconf.graph.nodes import Input, Node
from mergeconf.methods.apply import evaluate, trace
from mergeconf.methods.registry import Method
from mergeconf.plan import TensorPlan

torch.set_num_threads(1)  # tensors are small: more threads only wait for each other
TORCH = {
    DType.bfloat16: torch.bfloat16,
    DType.float16: torch.float16,
    DType.float32: torch.float32,
    DType.float64: torch.float64,
}
FLOATS = tuple(TORCH)
SMALL_TILES = Settings(threads=2, tile=1000, chunk=65_536)
"""Several tiles even in small tensors, whose ends are at odd places."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_of(tensor: torch.Tensor) -> DType:
    """Return our name of a torch format."""
    return DType[str(tensor.dtype).removeprefix("torch.")]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the stored bits as integers."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def canonical(tensor: torch.Tensor) -> torch.Tensor:
    """Return the stored bits, with one form for every NaN."""
    return bits_of(torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor))


def assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    """Fail unless shape, format and all bits agree; NaN equals NaN."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    unequal = (canonical(got) != canonical(want)).flatten()
    if unequal.any():
        first = int(unequal.nonzero()[0])
        raise AssertionError(
            f"{int(unequal.sum())} of {unequal.numel()} elements differ, first at {first}: "
            f"got {got.flatten()[first].item()!r}, want {want.flatten()[first].item()!r}"
        )


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's elements as they lie in a file."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def store(tensors: Sequence[torch.Tensor], folder: Path) -> list[StoredTensor]:
    """Write tensors one after the other into one file."""
    path, stored, offset = folder / "tensors.bin", [], 0
    with path.open("wb") as file:
        for index, tensor in enumerate(tensors):
            content = raw_bytes(tensor)
            file.write(content)
            name, shape = f"input {index}", tuple(tensor.shape)
            stored.append(StoredTensor(name, dtype_of(tensor), shape, path, offset, len(content)))
            offset += len(content)
    return stored


class MemorySink:
    """Keeps output tensors in memory; refuses bytes that were written before."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.content = {name: bytearray(size) for name, size in sizes.items()}
        self.written = dict.fromkeys(sizes, 0)
        self.finished: list[str] = []
        self._seen = {name: bytearray(size) for name, size in sizes.items()}
        self._lock = threading.Lock()

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        """Take bytes of a tensor, at an offset in it."""
        end = offset + buffer.nbytes
        with self._lock:
            assert name not in self.finished
            assert not any(self._seen[name][offset:end]), "bytes were written twice"
            self._seen[name][offset:end] = b"\1" * buffer.nbytes
            self.content[name][offset:end] = buffer
            self.written[name] += buffer.nbytes

    def finish(self, name: str) -> None:
        """Know that all bytes of a tensor have been written."""
        with self._lock:
            assert self.written[name] == len(self.content[name]), "bytes are missing"
            self.finished.append(name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of one tensor gave."""

    tensor: torch.Tensor
    counts: Counter[str]


def stream(
    expression: Node,
    inputs: Sequence[torch.Tensor],
    out_dtype: DType,
    *,
    settings: Settings = SMALL_TILES,
    seed: int = 0,
    name: str = "",
    shape: tuple[int, ...] | None = None,
) -> Outcome:
    """Compute an expression over stored tensors, slot i being `inputs[i]`, tile by tile.

    The result has the shape of the first one unless another is given.
    """
    shape = tuple(inputs[0].shape) if shape is None else shape
    with tempfile.TemporaryDirectory() as folder, ReadFiles() as reads:
        stored = tuple(store(inputs, Path(folder)))
        plan = TensorPlan(name, shape, out_dtype, expression, stored)
        sink = MemorySink({name: plan.numel * out_dtype.itemsize})
        executor = LocalExecutor(reads, sink, Silent(), settings, seed)
        executor.run([plan])
    assert sink.finished == [name]
    content = sink.content[name]
    tensor = torch.empty(shape, dtype=TORCH[out_dtype])
    if content:
        tensor = torch.frombuffer(content, dtype=TORCH[out_dtype]).reshape(shape)
    return Outcome(tensor, executor.counts)


def expression_of(
    method: Method,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    parameters: Mapping[str, Any],
    out_dtype: DType,
) -> tuple[Node, list[torch.Tensor]]:
    """Return a method's expression and the tensors of its slots."""
    inputs = [*([] if base is None else [base]), *models]
    nodes = [Input(slot, dtype_of(tensor)) for slot, tensor in enumerate(inputs)]
    first = None if base is None else nodes[0]
    others = nodes if base is None else nodes[1:]
    shape = tuple(models[0].shape)
    return trace(method, first, others, shape, parameters, out_dtype), inputs


def stream_method(
    method: Method,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    parameters: Mapping[str, Any],
    *,
    out_dtype: DType | None = None,
    settings: Settings = SMALL_TILES,
    seed: int = 0,
    name: str = "",
) -> Outcome:
    """Compute a method as a run does."""
    target = out_dtype or dtype_of(models[0] if base is None else base)
    expression, inputs = expression_of(method, base, models, parameters, target)
    return stream(expression, inputs, target, settings=settings, seed=seed, name=name)


def eager_method(
    method: Method,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    parameters: Mapping[str, Any],
    *,
    out_dtype: DType | None = None,
    seed: int = 0,
    name: str = "",
) -> torch.Tensor:
    """Compute a method by the oracle: on whole tensors, with torch."""
    target = out_dtype or dtype_of(models[0] if base is None else base)
    return evaluate(method, base, models, parameters, seed=seed, name=name, out_dtype=TORCH[target])
