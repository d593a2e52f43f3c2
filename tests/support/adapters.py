"""Adapters in peft's format, written by hand, and what they make of a model in float64."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


def some(*shape: int, seed: int, scale: float = 0.3) -> torch.Tensor:
    """Return random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


def write_adapter(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, prefix: str = PREFIX, **config: Any
) -> Path:
    """Write an adapter: tensors by their names without prefix, and the config's fields."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def linear(module: str, out: int, into: int, *, rank: int = 4, seed: int = 0) -> Tensors:
    """Return the pair of matrices for a matrix stored as (out, in) or (in, out)."""
    return {
        f"{module}.lora_A.weight": some(rank, into, seed=seed),
        f"{module}.lora_B.weight": some(out, rank, seed=seed + 1),
    }


def embedding(module: str, tokens: int, width: int, *, rank: int = 4, seed: int = 0) -> Tensors:
    """Return the pair of matrices for an embedding."""
    return {
        f"{module}.lora_embedding_A": some(rank, tokens, seed=seed),
        f"{module}.lora_embedding_B": some(width, rank, seed=seed + 1),
    }


def magnitude(module: str, length: int, *, seed: int = 9) -> Tensors:
    """Return DoRA's lengths: positive numbers."""
    return {f"{module}.lora_magnitude_vector": some(length, seed=seed).abs() + 0.5}


def convolution(module: str, shape: tuple[int, ...], *, rank: int = 4, seed: int = 0) -> Tensors:
    """Return the pair of kernels for a convolution."""
    ones = [1] * (len(shape) - 2)
    return {
        f"{module}.lora_A.weight": some(rank, *shape[1:], seed=seed),
        f"{module}.lora_B.weight": some(shape[0], rank, *ones, seed=seed + 1),
    }


def merged(
    base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor], scale: float = 2.0,
    scales: Mapping[str, float] | None = None, swapped: tuple[str, ...] = (),
) -> Tensors:  # fmt: skip
    """Return the model's tensors with an adapter in float64, as the papers say it.

    Args:
        base: Tensors of the model.
        adapter: Tensors of the adapter, without prefix, modules named as in the model.
        scale: What products are multiplied by.
        scales: The same, for some modules.
        swapped: Ends of modules that are stored as (in, out).
    """
    found = {name: tensor.double() for name, tensor in base.items()}
    for name, tensor in adapter.items():
        if "lora_" not in name:
            found[name.replace(".base_layer", "")] = tensor.to(base_dtype(base, name)).double()
    for name, tensor in adapter.items():
        part = re.fullmatch(r"(.+)\.lora_(embedding_)?A(\.weight)?", name)
        if part is None:
            continue
        module = part[1]
        other = adapter[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        rank = tensor.shape[0]
        delta = other.double().reshape(-1, rank) @ tensor.double().reshape(rank, -1)
        by_columns = bool(part[2]) or module.endswith(swapped or ("\0",))
        weight = found[f"{module}.weight"]
        delta = delta.T if by_columns else delta
        result = weight + delta.reshape(weight.shape) * (scales or {}).get(module, scale)
        lengths = adapter.get(f"{module}.lora_magnitude_vector")
        if lengths is not None:
            dim = 0 if by_columns else 1
            norm = result.norm(dim=dim, keepdim=True)
            wanted = lengths.double()[None, :] if by_columns else lengths.double()[:, None]
            result = result * wanted / norm
        found[f"{module}.weight"] = result
        offset = adapter.get(f"{module}.lora_B.bias")
        if offset is not None:
            found[f"{module}.bias"] += offset.double() * (scales or {}).get(module, scale)
    return found


def base_dtype(base: Mapping[str, torch.Tensor], name: str) -> torch.dtype:
    """Return the format of the model's tensor that a saved one stands for."""
    return base[name.replace(".base_layer", "")].dtype


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Fail unless a tensor is the exact one, rounded, give or take the noise of float32."""
    assert got.shape == want.shape
    assert got.isfinite().all()
    unit = torch.finfo(got.dtype).eps
    noise = 16 * torch.finfo(torch.float32).eps * max(float(want.abs().max()), 1e-30)
    allowed = want.abs() * unit * 0.5 * (1 + 1e-6) + noise
    assert ((got.double() - want).abs() <= allowed).all(), float((got.double() - want).abs().max())


def scale_by(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """Return the scale of a product."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank
