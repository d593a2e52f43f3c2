"""What a run holds for adapters is in its plan: the factors of the tensors that are open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mergeconf.api import load_recipe, make_plan
from mergeconf.execution.local import Settings
from mergeconf.execution.memory import estimate
from support.adapters import write_adapter
from test_memory import blocks, measure, write_file

SHAPES = {
    "model.embed_tokens.weight": (60_000, 64),
    **{f"model.layers.{i}.w.weight": (700, 900) for i in range(3)},
}
RANK = 96

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_file(folder / "base", SHAPES, blocks(1)[0])
    rng = np.random.default_rng(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.random(shape, np.float32) * 0.01).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.lora_embedding_A": some(RANK, 60_000),
        "model.embed_tokens.lora_embedding_B": some(64, RANK),
    }
    for name, (out, into) in list(SHAPES.items())[1:]:
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": some(RANK, into)}
        tensors |= {f"{module}.lora_B.weight": some(out, RANK)}
    write_adapter(folder / "plain", tensors, r=RANK)
    lengths = {
        f"{name.removesuffix('.weight')}.lora_magnitude_vector": some(shape[i == 0])
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    write_adapter(folder / "dora", tensors | lengths, r=RANK, use_dora=True)
    return folder


def recipe_of(folder: Path, adapter: str) -> Path:
    path = folder / f"{adapter}.yaml"
    path.write_text(json.dumps({"merge_method": "linear", "models": [f"base+{adapter}", "base"]}))
    return path


@pytest.mark.parametrize(
    ("adapter", "threads", "memory"),
    [("plain", 1, None), ("plain", 3, None), ("dora", 2, None), ("dora", 3, 84 << 20)],
)
def test_a_run_holds_no_more_than_its_plan_says(folder, tmp_path, adapter, threads, memory):
    figures = measure(recipe_of(folder, adapter), tmp_path / "o", memory, threads)
    assert figures["held"] <= figures["planned"] <= (memory or 1 << 40)


def test_factors_are_counted_for_every_tensor_that_is_open(folder):
    plan = make_plan(load_recipe(recipe_of(folder, "plain")))
    factors = 4 * RANK * (60_000 + 64)
    for threads in (1, 2, 3):
        bare = estimate(plan, Settings(threads=threads))
        assert bare.reduction_bytes >= factors
        assert bare.peak_bytes >= threads * factors
