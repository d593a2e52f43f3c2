"""`check --deep`: what a sample of the weights tells, what it does not claim, how much it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.errors import Problem
from mergeconf.lint import Comparison, compare_models, findings, identity
from mergeconf.lint.sample import MOST_ELEMENTS, MOST_TENSORS, pieces_of, rounded, spread
from mergeconf.plan import make_plan
from mergeconf.recipe import load_recipe
from support.command import ROOT, call, environment
from support.models import read_model, write_model
from support.relatives import codes_of, plan_of, stranger, tuned, write_family

REAL = ROOT / "recipes" / "models"
TIES = "merge_method: ties\nbase_model: base\nmodels: [a, b]\n"
FOUR = ("base", "a", "b", "c", "d")


def look(folder: Path, text: str = TIES) -> tuple[Comparison, list[Problem]]:
    """Compare the models of a recipe in a folder."""
    plan = plan_of(folder, text)
    comparison = compare_models(plan)
    return comparison, list(findings(comparison, plan))


# --- where nothing is to be said --------------------------------------------------------------


def test_real_fine_tunes_are_no_cause_and_their_distances_are_right():
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        plan = make_plan(load_recipe(path))
        comparison = compare_models(plan)
        assert findings(comparison, plan) == ()
    comparison = compare_models(make_plan(load_recipe(ROOT / "recipes" / "quickstart.yaml")))
    assert (comparison.has_base, comparison.tensors) == (True, 39)
    base, tune = read_model(REAL / "base"), read_model(REAL / "order-2")
    figures = comparison.figures[2]
    assert figures.label == "models/order-2"
    checked = 0
    for distance in figures.distances:
        b, x = base[distance.name].double(), tune[distance.name].double()
        if b.numel() > MOST_ELEMENTS:
            continue
        checked += 1
        assert distance.relative == pytest.approx(float((x - b).norm() / b.norm()), rel=1e-9)
        cosine = float(torch.cosine_similarity(x.flatten(), b.flatten(), dim=0))
        assert distance.cosine == pytest.approx(cosine, rel=1e-9)
        assert distance.scale == pytest.approx(float(x.norm() / b.norm()), rel=1e-9)
    assert checked > 20


@pytest.mark.parametrize("change", [1e-4, 0.01, 0.3, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_relatives_are_no_cause(tmp_path, change, dtype):
    write_family(tmp_path, dtype=dtype, change=change)
    comparison, found = look(tmp_path)
    assert found == []
    if dtype is torch.float32:
        assert [f.median for f in comparison.figures[1:]] == pytest.approx([change] * 2, rel=1e-3)


def test_nothing_to_compare(tmp_path):
    write_family(tmp_path)
    text = (
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n"
        "  - sources: [{model: b, layer_range: [1, 3]}]\n"
    )
    assert compare_models(plan_of(tmp_path, text)) is None
    assert compare_models(plan_of(tmp_path, "merge_method: linear\nmodels: [a]\n")) is None


# --- strangers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (TIES, "the base"),
        ("merge_method: linear\nmodels: [a, b]\n", "'a'"),
        ("merge_method: linear\nbase_model: base\nmodels: [a, b]\n", "'a'"),
        ("merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: 0.5}\n", "the base"),
        ("merge_method: linear\nmodels: [a, {merge_method: linear, models: [b]}]\n", "'a'"),
    ],
)
def test_a_model_that_does_not_share_the_base(tmp_path, text, reference):
    write_family(tmp_path)
    write_model(tmp_path / "b", stranger(77))
    comparison, found = look(tmp_path, text)
    (warning,) = found
    assert (warning.code, warning.where) == ("not-of-the-base", "b")
    assert f"as far from {reference} as unrelated weights are" in warning.message
    figures = comparison.figures[-1]
    assert figures.median == pytest.approx(2**0.5, rel=0.1)
    assert abs(figures.cosine) < 0.1
    assert look(tmp_path, f"{text}silence: [not-of-the-base]\n")[1] == []


def test_a_head_that_was_made_anew(tmp_path):
    models = write_family(tmp_path)
    write_model(
        tmp_path / "b", {**models["b"], "lm_head.weight": stranger(5)["lm_head.weight"] * 1.5}
    )
    (warning,) = look(tmp_path)[1]
    assert warning.code == "not-of-the-base"
    assert "1 of 8 matrices have nothing in common with those of the base" in warning.message
    assert "lm_head.weight (1." in warning.message
    taken = f"{TIES}rules: [{{match: lm_head.weight, take: base_model}}]\n"
    assert look(tmp_path, taken)[1] == []  # what is not merged is not looked at


def test_norms_and_what_grew_from_zero_tell_nothing(tmp_path):
    models = write_family(tmp_path)
    other = stranger(3)
    norms = {name: other[name] for name in other if "norm" in name}
    grown = {"model.layers.0.mlp.up_proj.weight": torch.full((24, 24), 1e-6).bfloat16()}
    write_model(tmp_path / "base", {**models["base"], **grown})
    write_model(tmp_path / "a", {**models["a"], **norms})
    assert look(tmp_path)[1] == []


# --- the same ---------------------------------------------------------------------------------


def test_copies_are_found_whatever_their_format(tmp_path):
    models = write_family(tmp_path, FOUR)
    write_model(tmp_path / "b", models["base"])
    write_model(tmp_path / "d", {n: t.float() for n, t in models["a"].items()})
    comparison, found = look(tmp_path, TIES.replace("a, b", "a, b, c, d"))
    assert [(w.code, w.where) for w in found] == [
        ("identical-models", "b"), ("identical-models", "d"),
    ]  # fmt: skip
    assert "is identical to the base in all that is merged" in found[0].message
    assert "is identical to 'a' in all that is merged" in found[1].message
    equal = [figures.equal / figures.elements for figures in comparison.figures[1:]]
    assert equal[1] == 1 and equal[0] == equal[3] < 0.2


def test_a_difference_outside_the_sample(tmp_path, monkeypatch):
    big = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
    changed = big.flatten().clone()
    inside = {i for first, n in pieces_of(big.numel()) for i in range(first, first + n)}
    changed[next(i for i in range(big.numel()) if i not in inside)] += 1
    for name, tensor in (
        ("base", big),
        ("a", changed.reshape(300, 300)),
        ("b", tuned({"x": big}, 1)["x"]),
    ):
        write_model(tmp_path / name, {"x.weight": tensor})
    assert look(tmp_path)[1] == []
    monkeypatch.setattr(identity, "MOST_BYTES", 0)
    (warning,) = look(tmp_path)[1]
    assert warning.code == "identical-models"
    assert "in all elements looked at" in warning.message


# --- outliers, values, rounding ---------------------------------------------------------------


def test_a_model_far_further_than_the_others(tmp_path):
    models = write_family(tmp_path, FOUR, dtype=torch.float32, change=0.01)
    write_model(tmp_path / "c", tuned(models["base"], 9, 0.2))
    (warning,) = look(tmp_path, TIES.replace("a, b", "a, b, c, d"))[1]
    assert (warning.code, warning.where) == ("outlier-model", "c")
    assert "20 times as far from the base" in warning.message
    assert look(tmp_path, TIES.replace("a, b", "a, c"))[1] == []  # of two, which is it?
    write_model(tmp_path / "c", tuned(models["base"], 9, 0.08))
    assert look(tmp_path, TIES.replace("a, b", "a, b, c, d"))[1] == []


def test_values_that_are_not_finite(tmp_path):
    models = write_family(tmp_path)
    damaged = models["b"]["model.layers.1.mlp.up_proj.weight"].clone()
    damaged[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    write_model(tmp_path / "b", {**models["b"], "model.layers.1.mlp.up_proj.weight": damaged})
    (warning,) = look(tmp_path)[1]
    assert (warning.code, warning.where) == ("not-finite", "b")
    assert "3 of the elements" in warning.message
    assert "model.layers.1.mlp.up_proj.weight" in warning.message


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "breadcrumbs"])
def test_what_rounding_swallows_is_measured(tmp_path, method):
    models = write_family(tmp_path, change=0.004)
    text = (
        f"merge_method: {method}\nbase_model: base\nmodels: [a, b]\nparameters: {{weight: 0.1}}\n"
    )
    comparison, found = look(tmp_path, text)
    assert codes_of(found) == ["rounding-swallows"]
    lost = total = 0.0
    for name, tensor in models["base"].items():
        base = tensor.double()
        update = sum(0.1 * (models[m][name].double() - base) for m in "ab")
        gone = (base + update).float().bfloat16() == tensor
        lost += float((update[gone] ** 2).sum())
        total += float((update**2).sum())
    assert comparison.rounding.lost == pytest.approx(lost / total, rel=1e-6)
    assert comparison.rounding.lost > 0.5
    for quiet in (f"{text}out_dtype: float32\n", text.replace("0.1", "1.0")):
        assert look(tmp_path, quiet)[1] == []
    # what elements are dropped depends on more than the sample
    dropping = text.replace("{weight", "{density: 0.5, weight")
    if method != "task_arithmetic":
        assert look(tmp_path, dropping)[0].rounding is None


@pytest.mark.parametrize("dtype", [DType.bfloat16, DType.float16, DType.float32])
@given(values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=30))
def test_rounding_is_that_of_torch(dtype, values):
    want = torch.tensor(values).to(getattr(torch, dtype.name)).double()
    assert torch.equal(torch.from_numpy(rounded(torch.tensor(values).numpy(), dtype)), want)


# --- the sample -------------------------------------------------------------------------------


@given(numel=st.integers(0, 10**9))
def test_pieces_lie_in_the_tensor_apart_and_reach_its_ends(numel):
    pieces = pieces_of(numel)
    ends = [first + length for first, length in pieces]
    assert sum(length for _, length in pieces) == min(numel, MOST_ELEMENTS)
    assert all(
        end <= first for end, (first, _) in zip(ends, pieces[1:], strict=False)
    )  # fmt: skip
    if numel:
        assert (pieces[0][0], ends[-1]) == (0, numel)


@given(count=st.integers(0, 2000))
def test_tensors_are_spread_evenly(count):
    chosen = spread(range(count))
    assert len(chosen) == min(count, MOST_TENSORS) == len(set(chosen))
    assert chosen == sorted(chosen)
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_little_is_read_of_large_models_and_always_the_same(tmp_path):
    generator = torch.Generator().manual_seed(2)
    base = {f"x.{n}.weight": torch.randn(700, 700, generator=generator) for n in range(4)}
    for name, tensors in (("base", base), ("a", tuned(base, 1)), ("b", tuned(base, 2))):
        write_model(tmp_path / name, {n: t.bfloat16() for n, t in tensors.items()})
    comparison, found = look(tmp_path)
    assert found == []
    assert comparison.bytes_read == 3 * 4 * MOST_ELEMENTS * 2
    assert look(tmp_path)[0].figures == comparison.figures
    assert [f.median for f in comparison.figures[1:]] == pytest.approx([0.05] * 2, rel=0.02)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_warnings(tmp_path):
    write_family(tmp_path)
    write_model(tmp_path / "b", stranger(77))
    path = tmp_path / "recipe.yaml"
    path.write_text(TIES)
    done = call("check", path)
    assert (done.code, done.err) == (0, "")
    assert "compared" not in done.out
    done = call("check", path, "--deep")
    assert done.code == 0
    assert "compared with the base, base" in done.out
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert float(rows["a"][1]) == pytest.approx(0.05, rel=0.1)
    assert float(rows["b"][1]) == pytest.approx(1.4, rel=0.1)
    assert done.err.startswith("warning: b: is as far from the base")
    assert done.err.endswith("[not-of-the-base]\n")
    path.write_text("merge_method: linear\nmodels: [a]\n")
    assert "nothing to compare" in call("check", path, "--deep").out


def test_a_look_needs_no_torch():
    script = (
        "import sys\nfrom mergeconf.cli import app\n"
        f"app(['check', {str(ROOT / 'recipes/quickstart.yaml')!r}, '--deep'], "
        "standalone_mode=False)\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
