"""Digests of what every method and kernel gives, to be compared between processes.

    python -m support.digests streaming|eager|kernels

`streaming` and `kernels` never import torch: their inputs come from numpy, so that what is
compared is our own code under another set of the processor's extensions.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeconf.checkpoint import ReadFiles, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.execution import kernels
from mergeconf.execution.local import LocalExecutor, Settings
from mergeconf.execution.observer import Silent
from mergeconf.graph.nodes import Input, Node
from mergeconf.methods import Method, all_methods
from mergeconf.methods.apply import trace
from mergeconf.plan import TensorPlan

Array = npt.NDArray[Any]
SHAPES = ((613, 331), (70_001,))
"""Several blocks of sums; tiles and vectors that end at odd places."""
FORMATS = (DType.bfloat16, DType.float16, DType.float32)
NAME = "model.layers.1.self_attn.q_proj.weight"
SEED = 1234


def parameters_of(method: Method, models: int) -> dict[str, Any]:
    """Return values that make every part of a method work: densities, weights, no end values."""
    values: dict[str, Any] = {}
    for name, parameter in method.parameters.items():
        if parameter.per_model and parameter.default == 1:  # a weight or a density
            values[name] = tuple(0.4 + 0.13 * index for index in range(models))
        elif parameter.required:
            values[name] = 0.3 if parameter.bounds.contains(0.3) else parameter.bounds.low
    return values


def inputs_of(method: Method, shape: tuple[int, ...], dtype: DType) -> list[Array]:
    """Return stored bits of a base and of models that differ from it in some elements."""
    generator = np.random.default_rng(zlib.crc32(f"{method.name} {shape} {dtype}".encode()))
    count = 3 if method.max_models is None else method.max_models
    base = generator.normal(0, 0.05, shape)
    tensors = [base]
    for _ in range(max(count, method.min_models)):
        change = generator.normal(0, 0.01, shape) * (generator.random(shape) < 0.6)
        tensors.append(base + change)
    return [encode(tensor.astype(np.float32), dtype) for tensor in tensors]


def encode(values: Array, dtype: DType) -> Array:
    """Return stored bits of float32 values; bfloat16 by cutting off."""
    match dtype:
        case DType.bfloat16:
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        case DType.float16:
            return values.astype(np.float16).view(np.uint16)
        case _:
            return values


def calls() -> Iterator[tuple[str, Method, tuple[int, ...], DType, list[Array], dict[str, Any]]]:
    """Yield one call for each method, shape and format: a name and what belongs to it."""
    for method in all_methods().values():
        for shape in SHAPES:
            for dtype in FORMATS:
                tensors = inputs_of(method, shape, dtype)
                values = parameters_of(method, len(tensors) - 1)
                yield f"{method.name} {shape} {dtype}", method, shape, dtype, tensors, values


class _Collector:
    def __init__(self, size: int) -> None:
        self.content = bytearray(size)

    def write(self, name: str, offset: int, buffer: memoryview) -> None:
        self.content[offset : offset + buffer.nbytes] = buffer

    def finish(self, name: str) -> None:
        pass


def run(
    method: Method,
    shape: tuple[int, ...],
    dtype: DType,
    tensors: list[Array],
    values: dict[str, Any],
    settings: Settings,
    out_dtype: DType = DType.bfloat16,
) -> tuple[bytes, dict[str, int]]:
    """Run a method and return the output's bytes and what was counted."""
    used = tensors[1:] if method.base == "unused" else tensors
    nodes: list[Node] = [Input(slot, dtype) for slot in range(len(used))]
    base, models = (None, nodes) if method.base == "unused" else (nodes[0], nodes[1:])
    expression = trace(method, base, models, shape, values, out_dtype)
    with tempfile.TemporaryDirectory() as folder, ReadFiles() as reads:
        stored = []
        for slot, tensor in enumerate(used):
            path = Path(folder) / str(slot)
            tensor.tofile(path)
            stored.append(StoredTensor(path.name, dtype, shape, path, 0, tensor.nbytes))
        plan = TensorPlan(NAME, shape, out_dtype, expression, tuple(stored))
        sink = _Collector(plan.numel * out_dtype.itemsize)
        executor = LocalExecutor(reads, sink, Silent(), settings, SEED)
        executor.run([plan])
    return bytes(sink.content), dict(executor.counts)


def streaming() -> dict[str, str]:
    """Return a digest for each call, computed tile by tile."""
    return {name: digest(run(*call, Settings(threads=2))[0]) for name, *call in calls()}


def eager() -> dict[str, str]:
    """Return a digest for each call, computed by the oracle."""
    import torch

    from mergeconf.methods.apply import evaluate

    torch.set_num_threads(1)  # tensors are small: more threads only wait for each other
    formats = {dtype: getattr(torch, dtype.name) for dtype in FORMATS}
    found = {}
    for name, method, _, dtype, tensors, values in calls():
        plain = [torch.from_numpy(tensor).view(formats[dtype]) for tensor in tensors]
        base = None if method.base == "unused" else plain[0]
        result = evaluate(
            method, base, plain[1:], values, seed=SEED, name=NAME, out_dtype=torch.bfloat16
        )
        found[name] = digest(result.contiguous().view(torch.uint8).numpy().tobytes())
    return found


def kernel_results() -> dict[str, str]:
    """Return a digest for each kernel and numpy operation that tapes use, on any bits."""
    generator = np.random.default_rng(7)
    found = {}
    for size in (1, 7, 31, 1000, 65_537):
        x, y = generator.integers(0, 1 << 32, (2, size), np.uint32).view(np.float32)
        half = generator.integers(0, 1 << 16, size, np.uint16)
        out, mask, wide = np.empty(size, np.float32), np.empty(size, bool), np.empty(size)
        short = np.empty(size, np.uint16)
        scratch = np.empty(size, np.uint32)
        with np.errstate(all="ignore"):
            for function in (
                np.add, np.subtract, np.multiply, np.divide, kernels.minimum, kernels.maximum
            ):  # fmt: skip
                for other in (y, np.float32(0.3)):
                    function(x, other, out)
                    found[f"{function.__name__} {size} {np.ndim(other)}"] = of_floats(out)
            for function in (np.negative, np.absolute, np.sqrt):
                function(x, out)
                found[f"{function.__name__} {size}"] = of_floats(out)
            for function in (np.greater, np.greater_equal, np.less, np.less_equal):
                function(x, y, mask)
                found[f"{function.__name__} {size}"] = digest(mask.tobytes())
            kernels.bfloat16_to_float32(half, out.view(np.uint32))
            found[f"from bfloat16 {size}"] = of_floats(out)
            kernels.widen(half.view(np.float16), out)
            found[f"from float16 {size}"] = of_floats(out)
            kernels.narrow(x, short.view(np.float16))
            found[f"to float16 {size}"] = of_floats(short.view(np.float16))
            kernels.any_float32_to_bfloat16(x.view(np.uint32), scratch, short)
            found[f"to bfloat16 {size}"] = digest(short.tobytes())
            kernels.widen(x, wide)
            np.multiply(wide, wide, wide)
            found[f"double {size}"] = of_floats(wide)
            kernels.narrow(wide, out)
            found[f"from float64 {size}"] = of_floats(out)
    return found


def of_floats(values: Array) -> str:
    """Return a digest in which every NaN is the same."""
    return digest(np.where(np.isnan(values), values.dtype.type(np.nan), values).tobytes())


def digest(content: bytes) -> str:
    """Return a short digest of bytes."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


if __name__ == "__main__":
    kinds = {"streaming": streaming, "eager": eager, "kernels": kernel_results}
    print(json.dumps(kinds[sys.argv[1]]()))
    if sys.argv[1] != "eager":
        assert "torch" not in sys.modules
