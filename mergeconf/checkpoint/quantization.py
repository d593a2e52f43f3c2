"""Which weights of a model are 8-bit floats with scales, and which scale belongs to which element?

An 8-bit float stands for a weight together with its scale: weight = float32(code) · scale, in all
the conventions that are read here (a `weight_scale_inv` is the inverse of what the weight was
multiplied by, and so is multiplied with, too):

    DeepSeek-V3, transformers   NAME_scale_inv      one a block of 128 × 128, or one for all
    compressed-tensors, FBGEMM, NAME_scale          one for all, a row, a group of a row's
    ModelOpt, AutoFP8, Quark                        elements, or a block
    DeepSeek-V4                 MODULE.scale        one a block
    Mistral                     MODULE.qscale_weight

NAME is that of the weight, MODULE the same without `.weight`. The scale's shape says what it
belongs to; where blocks are cut off by the edge of a matrix the config has to give their size.
Reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from mergeconf.checkpoint.model import Checkpoint
from mergeconf.checkpoint.packed import find_packed
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError, Problem, listed
from mergeconf.storage.safetensors_in import StoredTensor

KEYS = ("quantization_config", "compression_config")
"""Keys of a config that speak of its quantization."""
METHODS = ("fp8", "compressed-tensors", "modelopt", "mxfp8", "quark")
"""Parts of the names of quantization methods that may mean 8-bit floats."""
_SCALE_DTYPES = (DType.float32, DType.bfloat16, DType.float16, DType.float64)
_OF_ACTIVATIONS = ("input_scale", "act_scale", "activation_scale", "input_scale_ub",
                   "output_scale", "qscale_act")  # fmt: skip
_OF_CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "prob_output_scale")
_ZERO_POINT = "_zero_point"
_SHOWN = 3
"""Tensors named in one message."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the blocks of a stack of matrices lie."""

    height: int
    """Rows of a matrix."""
    width: int
    """Columns of a matrix."""
    block: tuple[int, int]
    """Rows and columns of a block; those at the edges may be cut off."""


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """A weight of 8-bit floats."""

    weight: StoredTensor
    scale: StoredTensor
    grid: Grid
    exponents: bool
    """Whether the scale is stored as exponents of 2."""


@dataclass(slots=True)
class Quantization:
    """What of a model is quantized."""

    weights: dict[str, ScaledWeight] = field(default_factory=dict)
    """By the name of the weight."""
    scales: dict[str, str] = field(default_factory=dict)
    """Tensors through which weights are read: what each is, by name."""
    unneeded: dict[str, str] = field(default_factory=dict)
    """Tensors that only a quantized model needs: what each is, by name."""


def quantization_section(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a config, or a part of it, says of a quantization; empty if nothing."""
    for section in _sections(config or {}):
        for key in KEYS:
            if isinstance(section.get(key), dict) and section[key]:
                found: Mapping[str, Any] = section[key]
                return found
    return {}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that says nothing of a quantization."""
    return {
        key: without_quantization(value) if _is_section(key, value) else value
        for key, value in config.items()
        if key not in KEYS
    }


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for key, value in config.items():
        if _is_section(key, value):
            yield from _sections(value)


def _is_section(key: str, value: object) -> bool:
    return isinstance(value, dict) and key.endswith("_config") and key not in KEYS


def find_quantization(checkpoint: Checkpoint) -> Quantization | None:
    """Return what of a model is quantized in 8-bit floats, or None where nothing is.

    A model that neither speaks of a quantization nor has scales may hold 8-bit floats as well;
    these are no weights then, and stay as they are.

    Raises:
        CheckpointError: its weights are quantized in another way, or not all of them can be read.
    """
    tensors = checkpoint.tensors
    section = quantization_section(checkpoint.config)
    packed = find_packed(tensors, section, checkpoint.label)
    if packed is not None:
        raise CheckpointError(packed)
    finder = _Finder(checkpoint, section)
    for tensor in tensors.values():
        if tensor.dtype.is_float8 and not tensor.name.endswith(_ZERO_POINT):
            finder.add(tensor)
    method = str(section.get("quant_method", "")).lower()
    if not finder.found.weights and not any(known in method for known in METHODS):
        if finder.unscaled and section:
            finder.refuse_unscaled()
        return None
    finder.settle_rest()
    if finder.problems:
        raise CheckpointError(finder.problems)
    return finder.found


@dataclass(slots=True)
class _Finder:
    """Finds the scale of each weight, and collects what stands in the way."""

    checkpoint: Checkpoint
    section: Mapping[str, Any]
    found: Quantization = field(default_factory=Quantization)
    unscaled: list[str] = field(default_factory=list)
    """8-bit floats without a scale."""
    problems: list[Problem] = field(default_factory=list)
    _misshapen: list[str] = field(default_factory=list)

    def add(self, weight: StoredTensor) -> None:
        """Look for the scale of one weight."""
        tensors = self.checkpoint.tensors
        names = [name for name in scale_names(weight.name) if name in tensors]
        if not names:
            self.unscaled.append(weight.name)
            return
        scale = tensors[names[0]]
        self.found.scales.update(dict.fromkeys(names, f"scale of {weight.name}"))
        exponents = self._is_exponents(scale)
        grid = find_grid(weight.shape, scale.shape, declared_blocks(self.section))
        known = exponents or scale.dtype in _SCALE_DTYPES
        if grid is None or len(names) > 1 or not known:
            what = f"{scale.dtype} {list(scale.shape)}" if len(names) == 1 else listed(names)
            self._misshapen.append(f"{weight.name} {list(weight.shape)} with {what}")
            return
        self.found.weights[weight.name] = ScaledWeight(weight, scale, grid, exponents)

    def _is_exponents(self, scale: StoredTensor) -> bool:
        if scale.dtype is DType.float8_e8m0fnu:
            return True
        said = (str(value).lower() for value in self.section.values() if isinstance(value, str))
        return scale.dtype is DType.uint8 and any("mxfp8" in v or "ue8m0" in v for v in said)

    def settle_rest(self) -> None:
        """Say what the other tensors of the quantization are, and what cannot be read."""
        if self.unscaled and self.section:
            self.refuse_unscaled()
        if self._misshapen:
            self._refuse(
                f"{_count(self._misshapen, 'weight')} in 8-bit floats cannot be read through what "
                f"lies beside them: {listed(self._misshapen, _SHOWN)}",
                "a scale is one number for all, one a row, or one a block of the size that the "
                "config gives (weight_block_size); dequantize the model first, or name the one "
                "that was quantized",
            )
        orphans = []
        known = {*self.found.scales, *self.found.weights, *self.unscaled}
        for name in self.checkpoint.tensors:
            if name in known:
                continue
            if (said := self._unneeded(name)) is not None:
                self.found.unneeded[name] = said
            elif name.endswith(("weight_scale", "_scale_inv", _ZERO_POINT, "weight_g_idx")):
                orphans.append(name)
        if orphans:
            self._refuse(
                f"{_count(orphans, 'tensor')} of its quantization cannot be made use of: "
                f"{listed(orphans, _SHOWN)}",
                "there is no weight in 8-bit floats that they could belong to, or its numbers are "
                "not symmetric about 0; dequantize the model first, or name the one that was "
                "quantized",
            )

    def refuse_unscaled(self) -> None:
        """Refuse weights whose scale is missing."""
        self._refuse(
            f"{_count(self.unscaled, 'tensor')} hold{'s' if len(self.unscaled) == 1 else ''} 8-bit "
            f"floats without their scale: {listed(self.unscaled, _SHOWN)}",
            f"looked for {listed(scale_names(self.unscaled[0]))}; an interrupted download is the "
            "likely cause, or else dequantize the model first",
        )
        raise CheckpointError(self.problems)

    def _unneeded(self, name: str) -> str | None:
        last = name.rpartition(".")[2]
        if last in _OF_ACTIVATIONS or last.endswith("_activation_scale"):
            return "scale of activations, which only a quantized model needs"
        if last in _OF_CACHE:
            return "scale of the cache of keys and values, which only a quantized model needs"
        if last.endswith(_ZERO_POINT) and self._is_symmetric():
            return "zero point of numbers that are symmetric about 0"
        return None

    def _is_symmetric(self) -> bool:
        groups = list(_weight_groups(self.section))
        return bool(groups) and all(group.get("symmetric") is True for group in groups)

    def _refuse(self, message: str, hint: str) -> None:
        self.problems.append(Problem(message, where=self.checkpoint.label, hint=hint))


def _count(names: Sequence[str], what: str) -> str:
    return f"1 {what}" if len(names) == 1 else f"{len(names):,} {what}s"


# --- names, blocks ----------------------------------------------------------------------------


def scale_names(weight: str) -> list[str]:
    """Return what the scale of a weight may be called."""
    names = [f"{weight}_scale_inv", f"{weight}_scale"]
    module, dot, last = weight.rpartition(".")
    if last == "weight":
        names += [f"{module}{dot}scale", f"{module}{dot}qscale_weight"]
    return names


def declared_blocks(section: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the sizes of blocks, rows and columns, that a config speaks of."""
    found = [_pair(section.get("weight_block_size"))]
    for group in (section, *_weight_groups(section)):
        found.append(_pair(group.get("block_structure")))
        size = group.get("group_size")
        if isinstance(size, int) and size > 0:
            found.append((1, size))
    return [pair for pair in dict.fromkeys(found) if pair is not None]


def _weight_groups(section: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what compressed-tensors says of the weights of each group of modules."""
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, str):
        value = [int(part) if part.isdecimal() else 0 for part in value.split("x")]
    if not isinstance(value, list) or len(value) != 2:
        return None
    rows, columns = value
    fits = isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0
    return (rows, columns) if fits else None


def find_grid(
    weight: Sequence[int], scale: Sequence[int], declared: Sequence[tuple[int, int]]
) -> Grid | None:
    """Return where the blocks lie that a scale has values for; None where it cannot be told.

    Args:
        weight: Shape of the weight; its last two dimensions are matrices.
        scale: Shape of the scale.
        declared: Sizes of blocks that the config speaks of.
    """
    *stack, rows, columns = (1, 1, *weight)[-max(2, len(weight)) :]
    if prod(scale) == 1:
        height = max(1, prod(stack) * rows)
        return Grid(height, max(1, columns), (height, max(1, columns)))
    if len(weight) < 2 or not prod(weight) or not prod(scale):
        return None
    if len(scale) == 4 and len(weight) == 2 and scale[1] == scale[3] == 1:
        scale = (scale[0], scale[2])  # ModelOpt writes each block's scale as a matrix
    scale = (*scale, *[1] * (len(weight) - len(scale)))
    if len(scale) != len(weight) or list(scale[:-2]) != stack:
        return None
    down, across = scale[-2:]
    blocks = _edge_free(rows, down), _edge_free(columns, across)
    fitting = {
        (first or min(pair[0], rows), second or min(pair[1], columns))
        for pair in declared
        for first, second in (blocks,)
        if (first or -(-rows // pair[0]) == down) and (second or -(-columns // pair[1]) == across)
    }
    if not declared and not rows % down and not columns % across:
        fitting = {(rows // down, columns // across)}
    if None not in blocks:
        fitting = {blocks}  # type: ignore[arg-type]
    return Grid(rows, columns, fitting.pop()) if len(fitting) == 1 else None


def _edge_free(size: int, values: int) -> int | None:
    """Return the length of a block where there is one for all, or one for each; else None."""
    if values == 1:
        return size
    return 1 if values == size else None
