"""Which quantization has packed a model's weights into integers, and what can be done about it?

Such weights are refused by the name of their format. It is told by the names and formats of the
tensors; what the config says only decides between formats whose tensors look alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mergeconf.dtypes import DType
from mergeconf.errors import Problem
from mergeconf.storage.safetensors_in import StoredTensor

Tensors = Mapping[str, StoredTensor]
Section = Mapping[str, Any]
_ORIGINAL = "name the model that was quantized: its weights are what can be merged"
_TRANSFORMERS = (
    "name the model that was quantized, or dequantize this one with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder{}){}.save_pretrained(new_folder)"
)
_BITSANDBYTES = _TRANSFORMERS.format("", ".dequantize()")
_MXFP4 = _TRANSFORMERS.format(", quantization_config=Mxfp4Config(dequantize=True)", "")
_COMPRESSED = (
    "name the model that was quantized, or dequantize this one with compressed-tensors: its "
    "convert_checkpoint with CompressedTensorsDequantizer"
)
_BY_METHOD = {
    "gptq": "GPTQ", "awq": "AWQ", "auto-round": "AutoRound", "aqlm": "AQLM", "vptq": "VPTQ",
    "spqr": "SpQR", "higgs": "HIGGS", "bitnet": "BitNet", "quanto": "Quanto", "quark": "Quark",
    "torchao": "torchao", "hqq": "HQQ", "eetq": "EETQ", "fp_quant": "FP-Quant", "nvfp4": "NVFP4",
    "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4", "modelopt": "ModelOpt",
    "compressed-tensors": "compressed-tensors",
}  # fmt: skip
_WEIGHT = re.compile(r"(weight|_proj)$")


def find_packed(tensors: Tensors, section: Section, label: str) -> Problem | None:
    """Return what is to be said of a model whose weights are packed, or None where none is.

    Args:
        tensors: The model's tensors.
        section: What its config says of its quantization; empty where it says nothing.
        label: What messages call the model.
    """
    integers = [tensor for tensor in tensors.values() if tensor.dtype.is_integer]
    for name, packs, hint in _FORMATS if integers else ():
        if found := [one for one in integers if packs(one, tensors, section)]:
            kind = name or _by_method(section)
            others = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
            return Problem(
                f"is quantized with {kind}, which is not read: {found[0].name}{others} "
                f"hold{'' if others else 's'} {found[0].dtype} values that are no weights",
                where=label,
                hint=hint,
            )
    return None


def _by_method(section: Section) -> str:
    method = str(section.get("quant_method", "a method that its config does not name"))
    return next((name for key, name in _BY_METHOD.items() if key in method.lower()), method)


def _is(dtype: DType, end: str, beside: str, other: DType | None = None) -> _Packs:
    """Tell tensors of a format and an ending that have another one beside them."""

    def packs(one: StoredTensor, tensors: Tensors, _: Section) -> bool:
        if one.dtype is not dtype or not one.name.endswith(end):
            return False
        found = tensors.get(one.name.removesuffix(end) + beside)
        return found is not None and (other is None or found.dtype is other)

    return packs


def _named(end: str) -> _Packs:
    """Tell tensors by the end of their names."""
    return lambda one, _, __: one.name.endswith(end)


def _bitsandbytes_4bit(one: StoredTensor, tensors: Tensors, _: Section) -> bool:
    return f"{one.name}.quant_map" in tensors


def _qweight(method: str, beside: str) -> _Packs:
    """Tell packed weights of a method that is named, or else what lies beside them."""

    def packs(one: StoredTensor, tensors: Tensors, section: Section) -> bool:
        if not one.name.endswith(".qweight"):
            return False
        named = str(section.get("quant_method", "")).lower()
        if any(known in named for known in ("gptq", "awq")):
            return method in named
        return not named and one.name.removesuffix("qweight") + beside in tensors

    return packs


def _any(*kinds: _Packs) -> _Packs:
    return lambda one, tensors, section: any(packs(one, tensors, section) for packs in kinds)


def _of_config(one: StoredTensor, _: Tensors, section: Section) -> bool:
    """Tell integers that can only be weights, in a model whose config calls it quantized."""
    return bool(section) and _WEIGHT.search(one.name) is not None


_Packs = Callable[[StoredTensor, Tensors, Section], bool]
_U8, _I8 = DType.uint8, DType.int8
_FORMATS: tuple[tuple[str, _Packs, str], ...] = (
    ("bitsandbytes in 4 bits", _bitsandbytes_4bit, _BITSANDBYTES),
    ("bitsandbytes in 8 bits", _is(_I8, ".weight", ".SCB"), _BITSANDBYTES),
    ("GPTQ", _qweight("gptq", "g_idx"), _ORIGINAL),
    ("AWQ", _qweight("awq", "qzeros"), _ORIGINAL),
    ("MXFP4", _is(_U8, "_blocks", "_scales", _U8), _MXFP4),
    (
        "NVFP4",
        _any(
            _is(_U8, "weight", "weight_scale_2"),
            _is(_U8, "weight_packed", "weight_global_scale"),
        ),
        _COMPRESSED,
    ),
    (
        "MXFP4 (compressed-tensors)",
        _is(_U8, "weight_packed", "weight_scale", _U8),
        _COMPRESSED,
    ),
    (
        "compressed-tensors, packed integers (pack-quantized)",
        _named("weight_packed"),
        _COMPRESSED,
    ),
    ("compressed-tensors, left-out zeros (sparse-bitmask)", _named(".bitmask"), _COMPRESSED),
    ("HQQ", _named(".W_q"), _ORIGINAL),
    ("EETQ (8-bit integers)", _is(_I8, "", "_scales"), _ORIGINAL),
    ("Quanto", _is(_I8, "._data", "._scale"), _ORIGINAL),
    ("4-bit floats (FP4)", _is(_I8, ".weight", ".scale", DType.float8_e8m0fnu), _ORIGINAL),
    (
        "8-bit integers and their scales (int8, W8A8)",
        _is(_I8, "weight", "weight_scale"),
        _COMPRESSED,
    ),
    ("", _any(_named(".qweight"), _of_config), _ORIGINAL),
)
"""Name (empty for that which the config gives), what tells its tensors among all whole numbers, and
what can be done. The first that fits counts."""
