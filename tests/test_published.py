"""Recipes as people publish them: each is accepted, and its plan is what its shape promises.

`published/recipes` has them, with the expectation in their first lines; `published/header` says how
to read it. Models are made for each recipe, of the shape that it expects.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergeconf.api import merge
from mergeconf.errors import RecipeError
from mergeconf.methods import all_methods
from mergeconf.plan import Plan, make_plan
from mergeconf.recipe import load_recipe
from mergeconf.recipe.values import leaves
from published.header import Published, all_recipes
from published.made import NESTED, make, models_of
from support.models import read_model

RECIPES = all_recipes()


def has_nested(document: Mapping[str, Any]) -> bool:
    """Tell whether a merge stands in the place of a model's name."""
    listed = [item.get("model", item) for item in document.get("models", []) if
              isinstance(item, dict)]  # fmt: skip
    return any(isinstance(item, dict) and NESTED & item.keys() for item in listed)


def tokenizer_of(document: Mapping[str, Any]) -> bool:
    """Tell whether the output's tokenizer is not simply the base's."""
    section = document.get("tokenizer")
    source = document.get("tokenizer_source", "base" if section is None else None)
    if section is not None:
        source = section.get("source", "union")
        if section.keys() & {"tokens", "pad_to_multiple_of"}:
            return True
    return source != "base"


FEATURES: dict[str, Callable[[list[dict[str, Any]]], bool]] = {
    "several": lambda documents: len(documents) > 1,
    "definitions": lambda documents: any("definitions" in d for d in documents),
    "nested": lambda documents: any(map(has_nested, documents)),
    "adapter": lambda documents: any(a for d in documents for _, a in models_of(d)),
    "chat_template": lambda documents: any("chat_template" in d for d in documents),
    "tokenizer": lambda documents: any(map(tokenizer_of, documents)),
}
"""How to tell from plain YAML that a recipe needs a feature."""


CASES = [pytest.param(recipe, id=recipe.name) for recipe in RECIPES]


def planned(recipe: Published, folder: Path) -> Plan:
    """Make a recipe's models and plan it."""
    return make_plan(load_recipe(make(recipe, folder)))


@pytest.mark.parametrize("recipe", CASES)
def test_recipe_is_planned(recipe: Published, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path)
    assert {tensor.name for tensor in plan.tensors} == set(recipe.shape.names(recipe.layers))
    assert {problem.code for problem in plan.warnings} == recipe.warnings, plan.warnings
    methods = {t.decision.method or "take" for t in plan.tensors if t.decision is not None}
    assert methods <= recipe.methods
    assert methods & {plan.recipe.method, "take"}
    if len(recipe.documents) == 1 and "definitions" not in recipe.documents[0]:
        formats = {tensor.dtype.name for tensor in plan.tensors}
        (document,) = recipe.documents
        assert formats == {document.get("out_dtype", document.get("dtype", "bfloat16"))}
    if recipe.rows is not None:
        ends = ("embed_tokens.weight", "lm_head.weight")
        assert {t.shape[0] for t in plan.tensors if t.name.endswith(ends)} == {recipe.rows}
    for name, model, stored in recipe.inputs:
        tensor = plan.tensor(name)
        assert tensor is not None
        named = dict(zip(tensor.labels, tensor.inputs, strict=True))
        assert named[model].name == stored
    for name, parameter, numbers in recipe.values:
        assert value_of(plan, name, parameter) == pytest.approx(numbers), (name, parameter)


def value_of(plan: Plan, name: str, parameter: str) -> tuple[float, ...]:
    """Return a parameter's value for a tensor; one number a merged model where each has its own."""
    tensor = plan.tensor(name)
    assert tensor is not None and tensor.decision is not None
    (value,) = (p.value for p in tensor.decision.parameters if p.name == parameter)
    return value if isinstance(value, tuple) else (float(value),)


def one_of_each() -> list[Any]:
    """Return the smallest recipe of each set of methods."""
    found: dict[frozenset[str], Any] = {}
    for case in sorted(CASES, key=lambda case: sum(case.values[0].layers.values())):
        found.setdefault(case.values[0].methods, case)
    return list(found.values())


@pytest.mark.parametrize("recipe", one_of_each())
def test_recipe_is_merged(recipe: Published, tmp_path: Path) -> None:
    merge(make(recipe, tmp_path), tmp_path / "out", threads=1)
    tensors = read_model(tmp_path / "out")
    assert set(tensors) == set(recipe.shape.names(recipe.layers))
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_there_are_recipes_of_every_kind() -> None:
    assert len(RECIPES) >= 60
    assert len({recipe.title for recipe in RECIPES}) == len(RECIPES)
    used = set().union(*(recipe.methods for recipe in RECIPES)) - {"take"}
    assert used == set(all_methods()) - {"parameter_selection"}
    for feature, needs in FEATURES.items():
        assert any(needs(recipe.documents) for recipe in RECIPES), feature


def test_a_header_is_held_against_the_plan(tmp_path: Path) -> None:
    """What the checks above rest on: another number of layers, value or source is noticed."""
    (recipe,) = (r for r in RECIPES if r.name == "passthrough-block-expansion")
    plan = planned(recipe, tmp_path)
    assert len(plan.tensors) == 15 * 9 + 3
    assert value_of(plan, "model.layers.4.self_attn.o_proj.weight", "scale") == (0.0,)
    assert value_of(plan, "model.layers.3.self_attn.o_proj.weight", "scale") == (1.0,)


LINEAR = "merge_method: linear\nmodels: [o/a, o/b]\n"


def test_a_key_of_its_own_may_hold_what_aliases_repeat() -> None:
    text = "light: &light {weight: 0.25}\nmerge_method: linear\nmodels:\n"
    text += "  - {model: o/a, parameters: *light}\n  - {model: o/b, parameters: {weight: 0.75}}\n"
    recipe = load_recipe(text)
    assert recipe.warnings == ()
    assert [leaf.value for e in recipe.models for leaf in leaves(e.parameters["weight"])] == [
        0.25, 0.75
    ]  # fmt: skip
    for key in ("paramters: &light {weight: 1}", "light: {weight: 1}", "light: 'a & b'"):
        with pytest.raises(RecipeError, match="unknown key"):
            load_recipe(f"{LINEAR}{key}\n")


def test_an_int8_mask_that_stands_beside_the_parameters_is_a_warning() -> None:
    (warning,) = load_recipe(f"{LINEAR}int8_mask: true\n").warnings
    assert (warning.where, warning.code) == ("int8_mask", "ignored-key")


def test_a_random_seed_is_a_warning_that_names_the_seed() -> None:
    (warning,) = load_recipe(f"{LINEAR}random_seed: 0\n").warnings
    assert (warning.where, warning.code) == ("random_seed", "ignored-key")
    assert "'seed'" in warning.hint
    with pytest.raises(RecipeError, match=r"parameters\.random_seed"):
        load_recipe(f"{LINEAR}parameters: {{random_seed: 0}}\n")


def test_recipes_are_yaml_that_any_reader_takes() -> None:
    for recipe in RECIPES:
        assert all(isinstance(d, dict) for d in yaml.safe_load_all(recipe.text)), recipe.name


RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}
"""Methods that draw at random, so that values differ."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let mergekit merge every recipe, in one process, and return the folder of their folders."""
    from parity.test_methods_parity import mergekit_python

    python = mergekit_python()
    if python is None:
        pytest.skip("set MERGECONF_MERGEKIT to an environment that holds mergekit 0.1.5")
    folder = tmp_path_factory.mktemp("published")
    for recipe in RECIPES:
        make(recipe, folder / recipe.name, exact=True)
    worker = Path(__file__).with_name("published") / "worker.py"
    result = subprocess.run(
        [str(python), str(worker), str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.mark.parity
def test_what_mergekit_refuses(theirs: Path) -> None:
    refused = {}
    by_name = {recipe.name: recipe for recipe in RECIPES}
    for recipe in RECIPES:
        error = theirs / recipe.name / "error"
        if error.exists():
            refused[recipe.name] = error.read_text()
    print(f"mergekit merges {len(RECIPES) - len(refused)} of {len(RECIPES)} recipes, and refuses")
    for name, message in refused.items():
        print(f"  {name:44} {message.splitlines()[0][:120]}")
        assert ("huggingface.co" in message) or by_name[name].mergekit != "hub"
    assert set(refused) == {r.name for r in RECIPES if r.mergekit in ("no", "hub")}


@pytest.mark.parity
@pytest.mark.parametrize(
    "recipe", [case for case in CASES if case.values[0].mergekit in ("yes", "other")]
)
def test_result_is_mergekits(recipe: Published, theirs: Path, tmp_path: Path) -> None:
    folder = theirs / recipe.name
    want = read_model(folder / "theirs")
    merge(folder / "recipe.yaml", tmp_path / "out", threads=1)
    got = read_model(tmp_path / "out")
    if recipe.mergekit == "other":
        assert count(got) == count(want)
        return
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in want.items()}
    if recipe.methods & RANDOM:
        return
    for name, tensor in want.items():
        difference = (got[name].double() - tensor.double()).abs().max()
        assert difference <= 1e-5 * tensor.abs().max(), (name, float(difference))


def count(tensors: Mapping[str, Any]) -> int:
    """Return the number of elements of a model."""
    return sum(tensor.numel() for tensor in tensors.values())
