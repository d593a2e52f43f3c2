"""Models in 8-bit floats with scales, as the tools that make them store them, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def spread(scale: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> torch.Tensor:
    """Return a value for each element from one for each block of the last two dimensions."""
    wide = scale.repeat_interleave(block[0], dim=-2).repeat_interleave(block[1], dim=-1)
    return wide[..., : shape[-2], : shape[-1]]


def block_scales(weight: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return scales that bring the largest value of each block to the largest of the format."""
    *_, rows, columns = weight.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    scale = torch.empty(*weight.shape[:-2], down, across)
    for i in range(down):
        for j in range(across):
            part = weight[..., i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[..., i, j] = part.abs().amax(dim=(-2, -1)).clamp(min=1e-6) / 448
    return scale


@dataclass(frozen=True)
class Convention:
    """One way of storing a weight in 8 bits."""

    name: Callable[[str], str]
    """Name of the scale of a weight."""
    section: Mapping[str, Any]
    """What the config says."""
    block: tuple[int, int]
    """Rows and columns of a block; 0 for all of them."""
    shape: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    """The scale as it is stored."""
    dtype: torch.dtype = torch.float32
    """Format of the scale."""
    codes: torch.dtype = E4M3

    def store(self, name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """Return what is stored for a weight, and the float32 values that it stands for."""
        block = self.block[0] or weight.shape[-2], self.block[1] or weight.shape[-1]
        scale = block_scales(weight, block)
        if self.dtype is torch.float8_e8m0fnu:
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        stored = scale.to(self.dtype)
        factor = spread(stored.float(), weight.shape, block)
        codes = (weight.float() / factor).clamp(-448, 448).to(self.codes)
        return {name: codes, self.name(name): self.shape(stored)}, codes.float() * factor

    def model(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
        """Return a model's stored tensors and its values: matrices of layers are quantized."""
        stored: Tensors = {}
        values: Tensors = {}
        for name, tensor in tensors.items():
            if ".layers." in name and tensor.dim() > 1:
                more, values[name] = self.store(name, tensor)
                stored |= more
            else:
                stored[name] = values[name] = tensor
        return stored, values


def _groups(**weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, **weights}
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }  # fmt: skip


def _after(end: str) -> Callable[[str], str]:
    return lambda name: name + end


def _instead(last: str) -> Callable[[str], str]:
    return lambda name: name.removesuffix("weight") + last


DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
CONVENTIONS = {
    "deepseek": Convention(_after("_scale_inv"), {**DEEPSEEK, "weight_block_size": [4, 4]}, (4, 4)),
    "deepseek-v4": Convention(
        _instead("scale"), {**DEEPSEEK, "scale_fmt": "ue8m0", "weight_block_size": [4, 4]}, (4, 4),
        dtype=torch.float8_e8m0fnu,
    ),
    "transformers, whole": Convention(
        _after("_scale_inv"), {"quant_method": "fp8", "activation_scheme": "static"}, (0, 0),
        lambda scale: scale.reshape(()),
    ),
    "compressed, whole": Convention(
        _after("_scale"), _groups(strategy="tensor"), (0, 0), lambda scale: scale.reshape(1),
        torch.bfloat16,
    ),
    "compressed, rows": Convention(
        _after("_scale"), _groups(strategy="channel"), (1, 0), dtype=torch.bfloat16
    ),
    "compressed, groups": Convention(
        _after("_scale"), _groups(strategy="group", group_size=2), (1, 2)
    ),
    "compressed, blocks": Convention(
        _after("_scale"), _groups(strategy="block", block_structure=[4, 4]), (4, 4),
        dtype=torch.float16,
    ),
    "mxfp8": Convention(
        _after("_scale_inv"), {"quant_method": "mxfp8"}, (1, 2),
        lambda scale: scale.view(torch.uint8), torch.float8_e8m0fnu,
    ),
    "fbgemm": Convention(
        _after("_scale"), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, (1, 0)
    ),
    "modelopt, rows": Convention(
        _after("_scale"), {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        (1, 0), lambda scale: scale.reshape(-1),
    ),
    "modelopt, blocks": Convention(
        _after("_scale"), {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, (3, 3),
        lambda scale: scale[:, None, :, None],
    ),
    "mistral": Convention(_instead("qscale_weight"), {**DEEPSEEK}, (0, 0)),
    "e5m2": Convention(
        _after("_scale"), {**DEEPSEEK, "fmt": "e5m2"}, (0, 0), codes=E5M2
    ),
}  # fmt: skip
"""Weights of layers are 6 × 6 in tests: blocks of 4 are cut off by the edges."""
