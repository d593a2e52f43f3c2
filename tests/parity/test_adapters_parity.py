"""Models with adapters: by peft's `merge_and_unload`, by mergekit 0.1.5 and by mergeconf.

peft sums the products of a matrix product in another order, and rounds some of them to the base's
format before it adds them. Skipped unless `MERGECONF_MERGEKIT` names mergekit's environment.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeconf.api import merge
from parity.test_methods_parity import mergekit_python
from support.models import load_exactly, read_model

pytestmark = pytest.mark.parity

WORKER = Path(__file__).with_name("peft_worker.py")
RECIPES = {
    "linear": {
        "merge_method": "linear", "dtype": "float32",
        "models": [
            {"model": "dora-float32/base+dora-float32/adapter", "parameters": {"weight": 0.4}},
            {"model": "embedding/base+embedding/adapter", "parameters": {"weight": 0.6}},
        ]},
    "ties": {
        "merge_method": "ties", "base_model": "patterns/base", "dtype": "float32",
        "parameters": {"density": 1.0, "weight": 0.7},
        "models": [
            {"model": "patterns/base+patterns/adapter"},
            {"model": {"model": "lora-float32/base", "lora": "lora-float32/adapter"}},
        ]},
    "gpt2": {
        "merge_method": "slerp", "base_model": "conv1d/base", "dtype": "float32",
        "parameters": {"t": 0.3},
        "models": [{"model": "conv1d/base"}, {"model": "conv1d/base+conv1d/adapter"}]},
    "bfloat16": {
        "merge_method": "task_arithmetic", "base_model": "lora/base", "dtype": "float32",
        "parameters": {"weight": 0.5},
        "models": [
            {"model": "lora/base+lora/adapter"}, {"model": "dora/base+dora/adapter"},
            {"model": "modules-to-save/base+modules-to-save/adapter"},
        ]},
}  # fmt: skip
"""Recipes that mergekit merges as well; the paths are relative to the folder."""


def names_of_cases() -> list[str]:
    """Return the worker's cases; it cannot be imported here, where there is no peft."""
    tree = ast.parse(WORKER.read_text())
    table = next(n for n in tree.body if isinstance(n, ast.AnnAssign) and n.target.id == "CASES")
    return [ast.literal_eval(key) for key in table.value.keys]


CASES = names_of_cases()
HEADS = {"tied-head"}
"""Cases in which peft changes the embedding together with the head, which the adapter leaves."""


def test_the_cases_were_found():
    assert len(CASES) >= 20
    assert set(CASES) >= HEADS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let peft and mergekit work, in one process, and return the folder of results."""
    python = mergekit_python()
    if python is None:
        pytest.skip("set MERGECONF_MERGEKIT to an environment that holds mergekit 0.1.5")
    folder = tmp_path_factory.mktemp("peft")
    for name, recipe in RECIPES.items():
        text = json.dumps(recipe)
        for case in CASES:  # mergekit reads paths from where it is started
            text = text.replace(f'"{case}/', f'"{folder / case}/')
            text = text.replace(f"+{case}/", f"+{folder / case}/")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(json.loads(text)))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(
        [python, "-W", "ignore", WORKER, folder], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """Return the folder of our own results."""
    for name in CASES:
        recipe = {"merge_method": "passthrough", "models": [f"{name}/base+{name}/adapter"]}
        path = folder / f"ours-{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        merge(path, folder / f"ours-{name}")
    return folder


def steps(got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return differences in steps of the format at the magnitudes of another tensor."""
    size = scale.abs().double().clamp(min=1e-30)
    step = torch.finfo(want.dtype).eps * 2.0 ** torch.floor(torch.log2(size))
    return (got.double() - want.double()).abs() / step


@pytest.mark.parametrize("name", [case for case in CASES if case not in HEADS])
def test_merged_by_peft(ours, name):
    got, want = read_model(ours / f"ours-{name}"), read_model(ours / name / "merged")
    base = read_model(ours / name / "base")
    assert got.keys() == want.keys()
    changed = 0
    for tensor, expected in want.items():
        assert got[tensor].dtype == expected.dtype
        before = base.get(tensor, expected)
        changed += not torch.equal(before, expected)
        if expected.dtype == torch.bfloat16:
            # peft rounds some products before it adds them: those of embeddings and of MiCA
            twice = "embed_tokens" in tensor or name == "mica"
            far = steps(got[tensor], expected, torch.maximum(before.abs(), expected.abs()))
            assert far.max() <= 1, tensor
            assert twice or (far > 0).double().mean() < 0.01, tensor
        else:
            far = steps(got[tensor], expected, expected.abs().max())
            assert far.max() <= 4, (tensor, far.max())
    assert changed


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_answers_as_the_model_with_its_adapter(ours, name):
    model = load_exactly(ours / f"ours-{name}").float()
    want = load_file(ours / name / "logits.safetensors")["logits"]
    inputs = {"input_ids": (torch.arange(24).reshape(2, 12) * 7) % 40}
    if hasattr(model.config, "patch_size"):
        inputs = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}
    with torch.no_grad():
        got = model(**inputs).logits
    stored = next(iter(read_model(ours / f"ours-{name}").values())).dtype
    allowed = 2e-5 if stored == torch.float32 else 0.02
    assert (got - want).abs().max() <= allowed * want.abs().max()


@pytest.mark.parametrize("name", list(RECIPES))
def test_merged_by_mergekit(ours, name):
    merge(ours / f"{name}.yaml", ours / f"ours-recipe-{name}")
    got, want = read_model(ours / f"ours-recipe-{name}"), read_model(ours / name)
    assert got.keys() >= want.keys() and len(want) >= 20  # it drops biases of a llama
    for tensor, expected in want.items():
        assert got[tensor].dtype == expected.dtype
        far = (got[tensor] - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        # a bfloat16 model with an adapter is rounded to bfloat16 before it is merged
        assert far <= (2**-8 if name == "bfloat16" else 1e-5), (tensor, far)
