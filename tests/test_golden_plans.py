"""The plan of every recipe in recipes/ is the one in tests/golden/.

After a change of a recipe or of the planner that is meant, write them anew and look at the diff:

    python tests/test_golden_plans.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("*.yaml"))
MACHINE = ("disk_free", "threads", "peak_bytes")
"""Figures that depend on the machine and its load."""


def plan_of(recipe: str) -> dict:
    """Return what `mergeconf plan --json` prints, without what depends on the machine."""
    done = subprocess.run(
        [sys.executable, "-m", "mergeconf", "plan", recipe, "--json", "--threads", "2"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    plan = json.loads(done.stdout)
    for name in MACHINE:
        assert plan["cost"].pop(name) > 0
    return plan


def golden_of(recipe: str) -> Path:
    return GOLDEN / f"{Path(recipe).stem}.json"


def test_the_recipes_that_were_found():
    assert "recipes/quickstart.yaml" in RECIPES
    assert "recipes/average.yaml" in RECIPES
    assert len(RECIPES) == len(list(GOLDEN.glob("*.json"))), "a golden plan too many or too few"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_is_as_it_was(recipe):
    assert plan_of(recipe) == json.loads(golden_of(recipe).read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_golden_plan_is_no_nonsense(recipe):
    # written by the program itself, so a few facts are asked of it that are known otherwise
    plan = json.loads(golden_of(recipe).read_text())
    written = {"float32": 4, "bfloat16": 2, "float16": 2}
    count = {tensor["name"]: 1 for tensor in plan["tensors"]}
    for tensor in plan["tensors"]:
        for side in tensor["shape"]:
            count[tensor["name"]] *= side
    size = sum(written[t["dtype"]] * count[t["name"]] for t in plan["tensors"])
    assert plan["cost"]["bytes_written"] == size
    assert len(count) == len(plan["tensors"])
    assert sum(plan["cost"]["passes"].values()) == len(plan["tensors"])
    assert plan["cost"]["peak_tensor"] in count
    assert plan["recipe"] == recipe
    labels = {model["model"] for model in plan["models"]}
    assert all(set(tensor["inputs"]) <= labels for tensor in plan["tensors"])


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in RECIPES:
        golden_of(name).write_text(json.dumps(plan_of(name), indent=1) + "\n")
        print(golden_of(name).relative_to(ROOT))
