"""Layers of models put together anew, for each architecture: what transformers makes of the result.

A layer of the output must be the layer it was copied from: the same weights, and built by
transformers from the same classes with the same settings, so that a window, a kind of attention or
a mixture of experts does not move to another layer.
"""

import json
import re

import pytest
import torch

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.errors import PlanError
from support.families import FAMILIES
from support.small_models import layers_of, load, made, run, traits, write_on
from test_architectures import NAMES

FIXED = ("zamba2", "esm", "gemma3n", "gemma4")
"""Families of which some tensors belong to the number and order of all layers."""
DEEP = [
    p for p in NAMES if FAMILIES[p.values[0]].stack and p.values[0] not in FIXED
]  # fmt: skip


def deeper(name, lean=False):
    """Return a recipe: some layers of one model, then more of another."""
    family = FAMILIES[name]
    folders = [str(made(name, variant, lean=lean)) for variant in range(2)]
    slices = [
        {"sources": [{"model": folders[variant], "layer_range": list(layers)}]}
        for variant, layers in enumerate(family.order)
    ]
    if family.module is None:
        return {"merge_method": "passthrough", "slices": slices}
    others = f"re:(?!{re.escape(family.stack)}\\.).*"
    return {
        "merge_method": "passthrough",
        "base_model": folders[0],
        "modules": {family.module: {"slices": slices}},
        "rules": [{"match": others, "take": "base_model"}],
    }


@pytest.mark.parametrize("lean", [False, True], ids=["saved", "lean"])
@pytest.mark.parametrize("name", DEEP)
def test_a_deeper_model_has_the_layers_it_is_made_of(name, lean, tmp_path):
    recipe = deeper(name, lean)
    assert make_plan(load_recipe(recipe)).warnings == ()
    merge(recipe, tmp_path / "out")
    result = load(name, tmp_path / "out")
    sources = [layers_of(name, load(name, made(name, variant, lean=lean))) for variant in range(2)]
    wanted = [
        sources[variant][number]
        for variant, (first, end) in enumerate(FAMILIES[name].order)
        for number in range(first, end)
    ]
    layers = layers_of(name, result)
    assert len(layers) == len(wanted) > 2
    for layer, origin in zip(layers, wanted, strict=True):
        assert traits(layer) == traits(origin)
        state, other = layer.state_dict(), origin.state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state)
    run(name, result)
    write_on(name, result)


@pytest.mark.parametrize("name", DEEP)
def test_what_is_cut_and_put_together_again_is_the_model(name, tmp_path):
    recipe = deeper(name)
    slices = recipe.get("slices") or recipe["modules"][FAMILIES[name].module]["slices"]
    model = str(made(name, 0))
    count = len(layers_of(name, load(name, made(name, 0))))
    for part, layers in zip(slices, ([0, 1], [1, count]), strict=True):
        part["sources"] = [{"model": model, "layer_range": layers}]
    merge(recipe, tmp_path / "out")
    found = json.loads((tmp_path / "out/config.json").read_text())
    config = json.loads((made(name, 0) / "config.json").read_text())
    assert {key: found[key] for key in config} == config
    for one, other in zip(
        run(name, load(name, tmp_path / "out")), run(name, load(name, made(name, 0))), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FIXED)
def test_what_belongs_to_all_layers_stands_in_the_way(name, tmp_path):
    with pytest.raises(PlanError, match="belongs to the number and order of all layers"):
        make_plan(load_recipe(deeper(name)))
    model = str(made(name, 0))
    whole = {"sources": [{"model": model, "layer_range": [0, 4]}]}
    merge({"merge_method": "passthrough", "slices": [whole]}, tmp_path / "out")
    load(name, tmp_path / "out")


def test_a_pattern_that_no_list_can_say_is_a_warning():
    """Jamba reads its layers' kinds from periods alone."""
    recipe = deeper("jamba")
    recipe["slices"][1]["sources"][0]["layer_range"] = [1, 4]
    warnings = make_plan(load_recipe(recipe)).warnings
    assert [(p.code, p.where) for p in warnings] == [
        ("layer-pattern", "config.json.attn_layer_period"),
        ("layer-pattern", "config.json.expert_layer_period"),
    ]
