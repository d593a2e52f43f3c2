"""Families of small models: a base, its fine-tunes, and strangers of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergeconf.errors import Problem
from mergeconf.plan import Plan, make_plan
from mergeconf.recipe import load_recipe
from support.models import write_model

Tensors = dict[str, torch.Tensor]

WIDTH, VOCAB, LAYERS = 24, 40, 3


def stranger(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Return a model with weights of its own: matrices around 0, norms near 1, as models have."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(VOCAB, WIDTH)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            tensors[f"{start}.{module}.weight"] = matrix(WIDTH, WIDTH)
        tensors[f"{start}.input_layernorm.weight"] = (1 + matrix(WIDTH).float()).to(dtype)
    tensors["lm_head.weight"] = matrix(VOCAB, WIDTH)
    return tensors


def tuned(base: Tensors, seed: int, change: float = 0.05) -> Tensors:
    """Return a fine-tune: each tensor moved by `change` of its norm in a direction of its own."""
    generator = torch.Generator().manual_seed(1000 + seed)
    found = {}
    for name, tensor in base.items():
        noise = torch.randn(tensor.shape, generator=generator)
        step = noise * (tensor.float().norm() / noise.norm() * change)
        found[name] = (tensor.float() + step).to(tensor.dtype)
    return found


def write_family(
    folder: Path,
    names: Sequence[str] = ("base", "a", "b"),
    *,
    dtype: torch.dtype = torch.bfloat16,
    change: float = 0.05,
    files: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Tensors]:
    """Write a base (the first name) and its fine-tunes, with small files by model."""
    base = stranger(0, dtype)
    models = {names[0]: base}
    models |= {name: tuned(base, seed, change) for seed, name in enumerate(names[1:])}
    for name, tensors in models.items():
        write_model(folder / name, tensors, files=(files or {}).get(name))
    return models


def plan_of(folder: Path, text: str) -> Plan:
    """Plan a recipe that lies in a folder."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return make_plan(load_recipe(path))


def warnings_of(folder: Path, text: str) -> list[Problem]:
    """Return what a recipe in a folder is warned of."""
    return list(plan_of(folder, text).warnings)


def codes_of(problems: Sequence[Problem]) -> list[str]:
    """Return the codes of warnings, having checked that they are such."""
    assert all(problem.severity == "warning" for problem in problems)
    return [problem.code for problem in problems]


def recipe_text(data: Mapping[str, Any]) -> str:
    """Return a recipe as YAML."""
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False)
