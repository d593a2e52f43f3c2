"""What rounding to the output's format costs is measured, and is what a float64 oracle says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergeconf import merge
from mergeconf.execution.rounding import EVERY, group_of
from mergeconf.graph.geometry import BLOCK
from support.command import call
from support.models import write_model

NAMES = {
    "model.embed_tokens.weight": (30, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.1.mlp.up_proj.weight": (24, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "lm_head.weight": (30, 16),
}


def models(folder: Path, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = {"base": base}
    for name in "ab":
        found[name] = {
            key: value + 0.05 * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
    for name, tensors in found.items():
        found[name] = {key: value.to(dtype) for key, value in tensors.items()}
        write_model(folder / name, found[name])
    return found


def oracle(given: dict[str, Any], names: list[str], weight: float) -> dict[str, float]:
    """Return what task arithmetic with two models loses, by whole tensors, in float64."""
    sums = dict.fromkeys(("error", "size", "changed", "lost", "update"), 0.0)
    for name in names:
        base, a, b = (given[label][name].float() for label in ("base", "a", "b"))
        exact = base + ((a - base) * weight + (b - base) * weight)
        rounded = exact.to(torch.bfloat16).float()
        sums["error"] += float(((rounded.double() - exact.double()) ** 2).sum())
        sums["size"] += float((exact.double() ** 2).sum())
        sums["changed"] += int((exact != base).sum())
        sums["lost"] += int(((exact != base) & (rounded == base)).sum())
        sums["update"] += float(((exact.double() - base.double()) ** 2).sum())
    return sums


@pytest.mark.parametrize("weight", [1.0, 0.01, 0.001])
def test_it_is_what_the_definition_says(tmp_path: Path, weight: float) -> None:
    given = models(tmp_path, torch.bfloat16, NAMES)
    report = merge({
        "merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a"), str(tmp_path / "b")], "parameters": {"weight": weight},
    }, tmp_path / "out")  # fmt: skip
    assert report.rounding.keys() == {"embed_tokens", "mlp", "self_attn", "lm_head"}
    for group, found in report.rounding.items():
        names = [name for name in NAMES if group_of(name) == group]
        want = oracle(given, names, weight)
        assert found.elements == sum(given["base"][name].numel() for name in names)
        assert found.relative_error == pytest.approx((want["error"] / want["size"]) ** 0.5)
        assert found.lost_share == pytest.approx(want["lost"] / want["changed"])
        assert found.update_relative_error == pytest.approx(
            (want["error"] / want["update"]) ** 0.5, rel=1e-4
        )
        assert (found.lost_share > 0.5) == (weight < 0.05)


def test_nothing_is_measured_where_nothing_is_rounded(tmp_path: Path) -> None:
    models(tmp_path, torch.bfloat16, NAMES)
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    exact = {"merge_method": "linear", "models": pair, "parameters": {"weight": 0.5}}
    assert not merge({**exact, "dtype": "float32"}, tmp_path / "wide").rounding
    picked = {"merge_method": "parameter_selection", "base_model": str(tmp_path / "base")}
    assert not merge({**picked, "models": pair}, tmp_path / "picked").rounding
    found = merge(exact, tmp_path / "narrow").rounding["mlp"]
    assert found.lost_share is None
    assert found.update_relative_error is None
    assert 0 < found.relative_error < 2**-8


def test_large_tensors_are_sampled_and_threads_do_not_change_what_is_measured(
    tmp_path: Path,
) -> None:
    shape = (5 * EVERY, BLOCK // 2)
    models(tmp_path, torch.bfloat16, {"layers.0.w.weight": shape, "layers.1.w.weight": (4, 4)})
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a")], "parameters": {"weight": 0.002},
    }  # fmt: skip
    found = [
        merge(recipe, tmp_path / f"out{threads}", threads=threads).rounding["w"]
        for threads in (1, 2)
    ]
    assert found[0].lost == found[1].lost
    assert found[0].elements == found[1].elements
    whole = shape[0] * shape[1]
    assert whole / EVERY <= found[0].elements - 16 <= 2 * whole / EVERY


def test_the_command_tells(tmp_path: Path) -> None:
    models(tmp_path, torch.bfloat16, NAMES)
    (tmp_path / "r.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [a]\nparameters: {weight: .001}\n"
    )
    out = call("run", tmp_path / "r.yaml", "-o", tmp_path / "out").out
    assert "rounded to bfloat16  " in out
    assert "of the updates lost" in out
