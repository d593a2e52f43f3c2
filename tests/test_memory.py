"""Memory is a contract: what a run holds stays below what its plan says, and below the budget.

Each run is a process of its own. Its highest resident size is measured from after the imports:
that is what the planned figure bounds. Inputs are one block of numbers again and again, so that
they are made quickly, or have no blocks on the disk at all.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mergeconf.methods import all_methods
from support.command import environment

CHILD = """
import json, sys
from pathlib import Path
import numpy
from mergeconf.api import load_recipe, make_plan, run_plan
from mergeconf.methods import all_methods

def resident(field):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(field + ":")[2].split()[0])

recipe, out, memory, threads, torch_too = json.loads(sys.argv[1])
all_methods()
if torch_too:
    import torch
try:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
except OSError:
    before = resident("VmHWM")
plan = make_plan(load_recipe(recipe))
report = run_plan(plan, out, memory=memory, threads=threads)
print(json.dumps({
    "held": resident("VmHWM") - before, "planned": report.planned_bytes,
    "parameters": plan.parameters, "bytes_read": report.bytes_read,
}))
"""

LARGE = {"embed.weight": (4_000, 8_000), **{f"layers.{i}.w": (1_500, 2_000) for i in range(6)}}
"""50 million elements, more than half of them in one tensor."""
MIDDLE = {"embed.weight": (3_000, 2_000), **{f"layers.{i}.w": (500, 1_000) for i in range(4)}}
BLOCK = 1 << 20
"""Elements that are written again and again."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def write_file(folder: Path, shapes: dict[str, tuple[int, ...]], block: bytes | None) -> Path:
    """Write a bfloat16 model of any size, in little memory; without a block, all of it holes."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if block is not None:
            for start in range(0, end, len(block)):
                file.write(block[: end - start])
        file.truncate(8 + len(text) + end)
    return folder


def blocks(count: int) -> list[bytes]:
    """Return the numbers of a base and its fine-tunes, of which half are changed."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(BLOCK, np.float32)
    models = [base]
    for _ in range(count - 1):
        noise = rng.standard_normal(BLOCK, np.float32) * 0.02
        models.append(base + noise * (rng.random(BLOCK) < 0.5))
    return [(model.view(np.uint32) >> 16).astype("<u2").tobytes() for model in models]


def make_models(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    for name, block in zip("xabcd", blocks(5), strict=True):
        write_file(folder / name, shapes, block)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("large"), LARGE)


@pytest.fixture(scope="module")
def middle(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("middle"), MIDDLE)


def recipe_for(folder: Path, name: str, models: int, **values: object) -> Path:
    method = all_methods()[name]
    wanted = {"density": 0.3, "t": 0.3, "gamma": 0.05, "resample": "all"}
    parameters = {key: value for key, value in wanted.items() if key in method.parameters} | values
    recipe = {"merge_method": name, "models": list("abcd")[:models], "parameters": parameters}
    if method.base != "unused":
        recipe["base_model"] = "x"
    path = folder / f"{name}-{models}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def measure(
    recipe: Path, out: Path, memory: int | None = None, threads: int = 2, torch_too: bool = False
) -> dict[str, int]:
    """Run a recipe; return bytes held at most, and as planned."""
    arguments = json.dumps([str(recipe), str(out), memory, threads, torch_too])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for path in out.iterdir():  # large: gone at once, not at the end of the session
        path.unlink()
    out.rmdir()
    return figures


def most_models(name: str) -> int:
    return min(all_methods()[name].max_models or 4, 4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["linear", "ties", "parameter_selection", "slerp", "dare_ties"])
def test_a_run_holds_no_more_than_its_plan_says(large, tmp_path, name, threads):
    recipe = recipe_for(large, name, most_models(name))
    figures = measure(recipe, tmp_path / "o", threads=threads)
    assert figures["parameters"] == 50_000_000
    assert figures["bytes_read"] >= 2 * 50_000_000 * most_models(name)
    assert figures["held"] <= figures["planned"]
    assert figures["planned"] < 150_000_000, "a bound that says nothing"


@pytest.mark.parametrize("name", list(all_methods()))
def test_every_method_holds_no_more_than_its_plan_says(middle, tmp_path, name):
    figures = measure(recipe_for(middle, name, most_models(name)), tmp_path / "o", threads=4)
    assert figures["held"] <= figures["planned"]


@pytest.mark.parametrize(("rows", "width"), [(40_000, 150), (12, 200_000)])
def test_what_columns_hold_is_planned_and_grows_with_the_width(tmp_path, rows, width):
    for name, block in zip("xab", blocks(3), strict=True):
        write_file(tmp_path / name, {"w": (rows, width)}, block)
    choice = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    figures = measure(recipe_for(tmp_path, "nuslerp", 2, **choice), tmp_path / "o")
    assert figures["held"] <= figures["planned"] <= 36_000_000 + 140 * width


@pytest.mark.parametrize("name", ["linear", "ties", "parameter_selection", "slerp"])
@pytest.mark.parametrize("budget", [56 << 20, 64 << 20])
def test_a_budget_is_kept(large, tmp_path, name, budget):
    recipe = recipe_for(large, name, most_models(name))
    figures = measure(recipe, tmp_path / "o", memory=budget, threads=8)
    assert figures["held"] <= figures["planned"] <= budget


def test_the_plan_tells_the_same_figure_as_the_run(middle, tmp_path):
    recipe = recipe_for(middle, "ties", 3)
    done = subprocess.run(
        [sys.executable, "-m", "mergeconf", "plan", str(recipe), "--json", "--threads", "2"],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    figures = measure(recipe, tmp_path / "o")
    assert json.loads(done.stdout)["cost"]["peak_bytes"] == figures["planned"]


def test_many_small_tensors_stay_within_the_plan_too(tmp_path):
    shapes = {f"layers.{i}.experts.{j}.w": (4, 4) for i in range(20) for j in range(200)}
    for name, block in zip("xab", blocks(3), strict=True):
        write_file(tmp_path / name, shapes, block)
    figures = measure(recipe_for(tmp_path, "ties", 2), tmp_path / "o")
    assert figures["parameters"] == 16 * 4_000
    assert figures["held"] <= figures["planned"]


def write_quantized(folder: Path, shapes: dict[str, tuple[int, int]], block: int) -> Path:
    """Write a model in 8-bit floats, with a scale for every `block` elements of a row."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, (rows, width) in shapes.items():
        for key, code, item, shape in (
            (name, "F8_E4M3", 1, (rows, width)),
            (f"{name}_scale", "F32", 4, (rows, width // block)),
        ):
            size = item * math.prod(shape)
            header[key] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, BLOCK):
            file.write(b"\x38" * min(BLOCK, end - start))  # all of them small numbers
    return folder


FEW = {"embed.weight": (2_000, 8_000), "layers.0.w": (1_000, 4_000), "layers.1.w": (9_000, 32)}
MANY = {f"layers.{i}.experts.{j}.w": (4, 32) for i in range(20) for j in range(100)}


@pytest.mark.parametrize(("name", "shapes"), [("linear", MANY), ("linear", FEW), ("ties", FEW)])
def test_quantized_models_stay_within_the_plan_too(tmp_path, name, shapes):
    for label in "xab":
        write_quantized(tmp_path / label, shapes, 32)
    figures = measure(recipe_for(tmp_path, name, 2), tmp_path / "o")
    assert figures["parameters"] == sum(map(math.prod, shapes.values()))
    assert figures["held"] <= figures["planned"]


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "most"), [(None, 300_000_000), (64 << 20, 64 << 20)])
@pytest.mark.parametrize("name", ["linear", "ties", "parameter_selection", "slerp"])
def test_a_billion_parameters_and_four_models(tmp_path, name, budget, most):
    shapes = {"embed.weight": (32_000, 2_048), "lm_head.weight": (32_000, 2_048)}
    shapes |= {f"layers.{i}.{part}": (2_048, 4_096) for i in range(20) for part in "abcde"}
    for label in "xabcd":
        write_file(tmp_path / label, shapes, None)
    recipe = recipe_for(tmp_path, name, most_models(name))
    figures = measure(recipe, tmp_path / "o", memory=budget, torch_too=True)
    assert figures["parameters"] > 950_000_000
    assert figures["held"] <= figures["planned"]
    assert figures["held"] <= most
