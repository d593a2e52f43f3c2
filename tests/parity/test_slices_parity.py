"""`slices` and `modules`, by `mergekit-yaml` 0.1.5 and by mergeconf, every tensor of the output.

Skipped unless `MERGECONF_MERGEKIT` names mergekit's environment.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mergeconf.api import merge
from parity.test_methods_parity import mergekit_python
from support import deep_models as deep
from support.models import load_exactly, read_model

pytestmark = pytest.mark.parity

CLASSIC = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
"""The gradient of slerp that most published recipes have."""


def source(model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    """Return a source of a slice."""
    found: dict[str, Any] = {"model": model, "layer_range": [first, end]}
    return found | ({"parameters": parameters} if parameters else {})


def piece(*sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a slice."""
    return {"sources": list(sources), **more}


def scaled(first: int, end: int) -> dict[str, Any]:
    """Return a source whose outputs are silenced, as in published self-merges."""
    silent = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}]
    return source("A", first, end, scale=[*silent, {"value": 1.0}])


CASES: dict[str, dict[str, Any]] = {
    "up": {
        "merge_method": "passthrough",
        "slices": [piece(source("A", 0, 3)), piece(source("A", 1, 4))],
    },
    "up-two-models": {
        "merge_method": "passthrough",
        "slices": [piece(source("A", 0, 3)), piece(source("B", 1, 4))],
    },
    "up-scaled": {
        "merge_method": "passthrough",
        "slices": [piece(source("A", 0, 2)), piece(scaled(1, 3)), piece(source("A", 2, 4))],
    },
    "scale-by-the-name-in-the-source": {
        "merge_method": "passthrough",
        "slices": [
            piece(source("A", 0, 1)),
            piece(source("A", 1, 4, scale=[{"filter": "layers.3.", "value": 2}, {"value": 0.5}])),
        ],
    },
    "slerp-classic": {
        "merge_method": "slerp", "base_model": "A", "parameters": {"t": CLASSIC},
        "slices": [piece(source("A", 0, 4), source("B", 0, 4))],
    },
    "slerp-two-slices": {
        "merge_method": "slerp", "base_model": "A", "parameters": {"t": CLASSIC},
        "slices": [
            piece(source("A", 0, 3), source("B", 1, 4)),
            piece(source("B", 2, 3), source("A", 3, 4)),
            piece(source("A", 2, 4), source("B", 0, 2), parameters={"t": [0.1, 0.9]}),
        ],
    },
    "ties": {
        "merge_method": "ties", "base_model": "A", "parameters": {"normalize": True},
        "slices": [
            piece(source("A", 0, 2), source("B", 0, 2, weight=0.6, density=0.5),
                  source("C", 2, 4, weight=[0.2, 0.7], density=[0.3, 0.8])),
            piece(source("C", 1, 4, weight=0.4, density=0.7), source("A", 1, 4),
                  source("B", 0, 3, weight=0.3, density=1.0)),
        ],
    },
    "dare-ties": {
        "merge_method": "dare_ties", "base_model": "A", "parameters": {"weight": [0.2, 0.9]},
        "slices": [
            piece(source("A", 0, 3), source("B", 1, 4, density=1.0), source("C", 0, 3)),
            piece(source("A", 3, 4), source("B", 3, 4), parameters={"weight": [0.1, 0.4]}),
        ],
    },
    "linear": {
        "merge_method": "linear", "parameters": {"weight": [1.0, 0.25, 0.5]},
        "slices": [
            piece(source("A", 0, 2), source("B", 0, 2, weight=0.3)),
            piece(source("B", 0, 1), source("C", 3, 4)),
            piece(source("C", 1, 4), source("A", 1, 4), parameters={"weight": 0.7}),
        ],
    },
    "own-base": {
        "merge_method": "task_arithmetic", "base_model": "A", "parameters": {"weight": 0.5},
        "slices": [
            piece(source("A", 0, 2), source("B", 2, 4)),
            piece(source("A", 1, 2), source("C", 3, 4), base_model="C"),
        ],
    },
}  # fmt: skip
KINDS = {"llama": CASES, "qwen3": {"up-same-kinds": {
    "merge_method": "passthrough",
    "slices": [piece(source("A", 0, 2)), piece(source("B", 0, 2))],
}}, "gpt2": {"up": CASES["up"], "up-two-models": CASES["up-two-models"]}}  # fmt: skip
COMPARED = (*(f"{kind}-" for kind in KINDS), "t5-")
T5: dict[str, dict[str, Any]] = {
    "modules": {
        "merge_method": "linear", "parameters": {"weight": 0.5},
        "modules": {
            "encoder": {"models": [{"model": "A"}, {"model": "B"}]},
            "decoder": {
                "models": [{"model": "A"}, {"model": "B", "parameters": {"weight": 0.2}}],
                "parameters": {"weight": [0.1, 1]},
            },
            "shared": {"models": [{"model": "B"}]},
        },
    },
    "slices": {
        "merge_method": "passthrough",
        "modules": {
            "encoder": {"slices": [piece(source("A", 0, 2)), piece(source("B", 1, 3))]},
            "decoder": {"slices": [piece(source("B", 0, 1)), piece(source("B", 1, 2))]},
            "shared": {"models": [{"model": "B"}]},
        },
    },
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "base-not-a-source": (
        CASES["slerp-classic"] | {"slices": [piece(source("B", 0, 4), source("C", 0, 4))]},
        "Base input is not present",
    ),
    "twice-in-one-slice": (
        {"merge_method": "linear", "parameters": {"weight": 1.0},
         "slices": [piece(source("A", 0, 2), source("A", 2, 4))]},
        "Duplicate merge inputs",
    ),
    "unequal": (
        {"merge_method": "linear", "parameters": {"weight": 1.0},
         "slices": [piece(source("A", 0, 2), source("B", 0, 3))]},
        "must contain the same number of layers",
    ),
}  # fmt: skip


LATE = ("qwen2", "qwen3", "gemma2-tied", "gemma3-tied")
"""Depth up-scaling fails in mergekit after all weights are written: `layer_types` is too short."""


def named(recipe: Any, folder: Path) -> Any:
    """Return a recipe with folders in place of the models' letters."""
    if isinstance(recipe, dict):
        return {key: named(value, folder) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [named(value, folder) for value in recipe]
    return str(folder / recipe) if recipe in ("A", "B", "C") else recipe


def all_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return every recipe by name, with the kind of its models."""
    found = {f"{k}-{name}": (k, case) for k, cases in KINDS.items() for name, case in cases.items()}
    found |= {f"t5-{name}": ("t5", case) for name, case in T5.items()}
    found |= {f"late-{kind}": (kind, CASES["up"]) for kind in LATE}
    found["unknown"] = ("helium", CASES["up-two-models"])
    return found | {f"refused-{name}": ("llama", case) for name, (case, _) in REFUSED.items()}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let mergekit compute every case, in one process, and return the folder of results."""
    python = mergekit_python()
    if python is None:
        pytest.skip("set MERGECONF_MERGEKIT to an environment that holds mergekit 0.1.5")
    folder = tmp_path_factory.mktemp("mergekit-slices")
    for kind in {*KINDS, *LATE, "t5", "helium"}:
        for number, letter in enumerate("ABC"):
            deep.save(kind, number, folder / "models" / kind / letter)
    for name, (kind, case) in all_cases().items():
        recipe = {**named(case, folder / "models" / kind), "dtype": "float32"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    worker = Path(__file__).with_name("mergekit_worker.py")
    result = subprocess.run(
        [str(python), str(worker), str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", [n for n in all_cases() if n.startswith(COMPARED)])
def test_every_tensor_of_the_output(name: str, merged: Path, tmp_path: Path) -> None:
    error = merged / f"{name}.error"
    assert not error.exists(), error.read_text()
    merge(merged / f"{name}.yaml", tmp_path / "out")
    theirs, ours = read_model(merged / name), read_model(tmp_path / "out")
    assert set(ours) == set(theirs)
    for tensor, want in theirs.items():
        if "passthrough" in (merged / f"{name}.yaml").read_text():
            assert torch.equal(ours[tensor], want), tensor
        else:
            difference = (ours[tensor].double() - want.double()).abs().max()
            assert difference <= 2e-6 * want.abs().max(), (tensor, float(difference))


@pytest.mark.parametrize("name", REFUSED)
def test_what_mergekit_refuses_is_refused(name: str, merged: Path, tmp_path: Path) -> None:
    from mergeconf.errors import MergeconfError

    assert REFUSED[name][1] in (merged / f"refused-{name}.error").read_text()
    with pytest.raises(MergeconfError, match=r"slices\.0\.sources"):
        merge(merged / f"refused-{name}.yaml", tmp_path / "out")


@pytest.mark.parametrize("kind", LATE)
def test_what_mergekit_cannot_save(kind: str, merged: Path, tmp_path: Path) -> None:
    assert "layer_types" in (merged / f"late-{kind}.error").read_text()
    merge(merged / f"late-{kind}.yaml", tmp_path / "out")
    assert len(load_exactly(tmp_path / "out").config.layer_types) == 6


def test_final_norm_and_head_are_the_last_slices_models(merged: Path, tmp_path: Path) -> None:
    """Of an architecture without a table, mergekit takes them from the first slice's models."""
    merge(merged / "unknown.yaml", tmp_path / "out")
    theirs, ours = read_model(merged / "unknown"), read_model(tmp_path / "out")
    first, last = (read_model(merged / "models/helium" / letter) for letter in "AB")
    assert set(theirs) == set(ours)
    for name, got in ours.items():
        if name in ("model.norm.weight", "lm_head.weight"):
            assert torch.equal(theirs[name], first[name])
            assert torch.equal(got, last[name])
        else:
            assert torch.equal(theirs[name], got)
