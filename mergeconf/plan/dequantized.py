"""What is a model whose weights are 8-bit floats with scales? The same model without quantization.

Each such weight becomes float32 values, code times scale, computed as part of what uses them: a
merge gives what it would give of the model converted to float32 beforehand. Where the recipe names
no format for the output it is the one that the model's config names for its weights, or bfloat16:
float32 would be four times the stored size and more exact than the weights ever were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from mergeconf.checkpoint import Checkpoint
from mergeconf.checkpoint.quantization import (
    Grid,
    Quantization,
    ScaledWeight,
    find_quantization,
    quantization_section,
    without_quantization,
)
from mergeconf.dtypes import DType
from mergeconf.errors import Problem, listed
from mergeconf.graph.lazy import as_f32
from mergeconf.graph.nodes import Cast, Elementwise, Input, Node, PerBlock
from mergeconf.plan.sources import Derived, Model, Source

_DTYPE_KEYS = ("dtype", "torch_dtype")
_SHOWN = 3
"""Tensors named in one message."""


def model_of(checkpoint: Checkpoint) -> Model:
    """Return the model that a checkpoint holds, quantized weights read through their scales.

    Raises:
        CheckpointError: its weights are quantized in a way that is not read.
    """
    quantization = find_quantization(checkpoint)
    if quantization is None:
        return Model.stored(checkpoint)
    dtype = dtype_of(checkpoint.config) or DType.bfloat16
    aside = {**quantization.unneeded, **quantization.scales}
    labels = (checkpoint.label, checkpoint.label)
    tensors: dict[str, Source] = {}
    for name, stored in checkpoint.tensors.items():
        if name in quantization.weights:
            tensors[name] = _derived(quantization.weights[name], labels, dtype)
        elif name not in aside:
            tensors[name] = stored
    files: dict[str, Any] = {sidecar.name: sidecar.path for sidecar in checkpoint.sidecars}
    config = checkpoint.config
    if config is not None and quantization_section(config):
        config = without_quantization(config)
        if dtype_of(config) is None:
            config |= {key: dtype.name for key in _DTYPE_KEYS if key in config}
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return Model(
        label=checkpoint.label,
        tensors=tensors,
        config=config,
        files=files,
        checkpoints=(checkpoint,),
        warnings=(*checkpoint.warnings, *_warnings(checkpoint, quantization)),
        made_by=_count(quantization.weights, "weight") + " read through their scales"
        if quantization.weights
        else "",
        aside=aside,
    )


def dtype_of(config: Mapping[str, Any] | None) -> DType | None:
    """Return the format that a config, or a part of it, names for the weights."""
    if config is None:
        return None
    for key in _DTYPE_KEYS:
        name = str(config.get(key, "")).removeprefix("torch.")
        if name in DType.__members__ and DType[name].is_float:
            return DType[name]
    parts = (part for key, part in config.items() if key.endswith("_config"))
    found = (dtype_of(part) for part in parts if isinstance(part, dict))
    return next((dtype for dtype in found if dtype is not None), None)


def _derived(scaled: ScaledWeight, labels: tuple[str, str], dtype: DType) -> Derived:
    weight, scale = scaled.weight, scaled.scale
    return Derived(
        name=weight.name,
        dtype=DType.float32,
        shape=weight.shape,
        expression=_expression(weight.dtype, scale.dtype, scaled.grid, scaled.exponents),
        inputs=(weight, scale),
        labels=labels,
        written_as=dtype,
    )


@lru_cache(maxsize=4096)
def _expression(weight: DType, scale: DType, grid: Grid, exponents: bool) -> Node:
    """Return code times scale; weights of one kind share one expression."""
    factor = PerBlock(Input(1, scale), grid.width, grid.height, grid.block, exponents)
    value = Elementwise("mul", (as_f32(Input(0, weight)), factor), "f32")
    return Cast(value, DType.float32, "stored")


def _warnings(checkpoint: Checkpoint, quantization: Quantization) -> Iterable[Problem]:
    weights, unneeded = quantization.weights, list(quantization.unneeded)
    message = "is called quantized by its config, though none of its weights is"
    if weights:
        message = (
            f"has {_count(weights, 'weight')} in 8-bit floats, read through their scales as float32"
        )
    yield _warning(
        "dequantized-weights",
        checkpoint,
        f"{message}; the output is not quantized",
        "quantize the output where it has to be as small",
    )
    if unneeded:
        yield _warning(
            "dropped-scales",
            checkpoint,
            f"has {_count(unneeded, 'tensor')} that only a quantized model needs, such as scales "
            f"of activations; the output has none: {listed(unneeded, _SHOWN)}",
            "they are measured again where the output is quantized",
        )


def _warning(code: str, checkpoint: Checkpoint, message: str, hint: str) -> Problem:
    return Problem(message, where=checkpoint.label, hint=hint, severity="warning", code=code)


def _count(items: Iterable[str], what: str) -> str:
    number = len(list(items))
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
