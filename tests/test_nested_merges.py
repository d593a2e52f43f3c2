"""A merge of merges gives the bits that the merges give one after another."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mergeconf import load_recipe, make_plan, merge
from mergeconf.errors import MergeconfError, PlanError, RecipeError
from support.models import read_model, write_model

LAYERS = 3
NAMES = ("base", "a", "b", "c", "d")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small models of one shape, in bfloat16, near each other."""
    folder = tmp_path_factory.mktemp("nested")
    for index, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(index)
        tensors = {
            "model.embed_tokens.weight": torch.randn(40, 16, generator=generator),
            "model.norm.weight": torch.randn(16, generator=generator),
            "lm_head.weight": torch.randn(40, 16, generator=generator),
        }
        for layer in range(LAYERS):
            for part in ("self_attn.q_proj", "mlp.up_proj"):
                key = f"model.layers.{layer}.{part}.weight"
                tensors[key] = torch.randn(24, 16, generator=generator)
        kept = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
        if name == "base":
            start = kept
        for key, value in kept.items():  # half of the elements equal the base's
            same = torch.rand(value.shape, generator=generator) < 0.5
            kept[key] = torch.where(same, start[key], value)
        config = {"num_hidden_layers": LAYERS, "model_type": "llama"}
        write_model(folder / name, kept, config=config)
    return folder


INNER: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}},
    "ties": {
        "merge_method": "ties", "base_model": "base", "models": ["a", "b"],
        "parameters": {"density": 0.4, "weight": 0.7},
    },
    "dare_ties": {
        "merge_method": "dare_ties", "base_model": "base", "models": ["a", "b", "c"],
        "parameters": {"density": 0.5, "weight": 0.4}, "seed": 7,
    },
    "parameter_selection": {
        "merge_method": "parameter_selection", "base_model": "base", "models": ["a", "b", "c"],
        "seed": 3,
    },
    "slerp": {
        "merge_method": "slerp", "base_model": "a", "models": ["a", "b"],
        "parameters": {"t": [0.1, 0.9]},
    },
    "della": {
        "merge_method": "della", "base_model": "base", "models": ["a", "b"],
        "parameters": {"density": 0.5, "weight": 0.5, "epsilon": 0.1}, "seed": 11,
    },
    "slices": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [2, 3]}]},
        ],
    },
    "float32": {
        "merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": [0.3, 0.6]},
        "dtype": "float32",
    },
    "rules": {
        "take": "base_model", "base_model": "base", "models": ["a", "b"],
        "rules": [
            {"match": "*.mlp.*", "merge_method": "linear", "parameters": {"weight": 0.5}},
            {"match": "lm_head.weight", "take": "b"},
        ],
    },
}  # fmt: skip

OUTER: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": ["MERGE", "d"], "parameters": {"weight": 0.5}},
    "ties on it": {
        "merge_method": "ties", "base_model": "MERGE", "models": ["c", "d"],
        "parameters": {"density": 0.5, "weight": 0.5},
    },
    "selection": {
        "merge_method": "parameter_selection", "base_model": "base", "models": ["MERGE", "d"],
        "seed": 5,
    },
    "slerp": {
        "merge_method": "slerp", "base_model": "d", "models": ["MERGE", "d"],
        "parameters": {"t": 0.3}, "dtype": "float32",
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs", "base_model": "base", "models": ["MERGE", "d"],
        "parameters": {"density": 0.6, "gamma": 0.1, "weight": 0.6},
    },
    "layers of it": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "d", "layer_range": [0, 2]}]},
            {"sources": [{"model": "MERGE", "layer_range": [1, 3]}]},
        ],
    },
}  # fmt: skip


def filled(recipe: Any, model: Any) -> Any:
    """Return a recipe with a model in the place of `MERGE`."""
    if recipe == "MERGE":
        return model
    if isinstance(recipe, dict):
        return {key: filled(value, model) for key, value in recipe.items()}
    return [filled(item, model) for item in recipe] if isinstance(recipe, list) else recipe


def write(folder: Path, *documents: Mapping[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text("---\n".join(yaml.safe_dump(dict(item)) for item in documents))
    return path


def bits_of(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in read_model(folder).items()
    }


def one_after_another(models: Path, inner: Any, outer: Any) -> dict[str, Any]:
    """Return the bits of the outer merge of the written inner one, and its config."""
    made = models / "made"
    merge(write(models, inner, name="inner.yaml"), made, force=True)
    merge(write(models, filled(outer, "made"), name="outer.yaml"), models / "out", force=True)
    return {**bits_of(models / "out"), "config": (models / "out" / "config.json").read_text()}


def at_once(models: Path, recipe: Path) -> dict[str, Any]:
    merge(recipe, models / "at-once", force=True)
    config = (models / "at-once" / "config.json").read_text()
    return {**bits_of(models / "at-once"), "config": config}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_written_inside(models: Path, inner: str, outer: str) -> None:
    want = one_after_another(models, INNER[inner], OUTER[outer])
    # inside, a merge without dtype takes that of the recipe around it
    around = dict(OUTER[outer])
    if "dtype" in around and "dtype" not in INNER[inner]:
        around["out_dtype"] = around.pop("dtype")
    got = at_once(models, write(models, filled(around, INNER[inner])))
    assert got == want


FORMS = ("definitions", "file", "documents", "documents in another order", "model of an item")


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same(models: Path, form: str) -> None:
    inner, outer = INNER["dare_ties"], OUTER["ties on it"]
    want = one_after_another(models, inner, outer)
    if form == "definitions":
        recipe = write(models, {**filled(outer, "x"), "definitions": {"x": inner}})
    elif form == "file":
        write(models, inner, name="other.yaml")
        recipe = write(models, filled(outer, {"recipe": "other.yaml"}))
    elif form == "documents":
        recipe = write(models, {**inner, "name": "x"}, filled(outer, "x"))
    elif form == "documents in another order":
        recipe = write(models, {**filled(outer, "x"), "name": "top"}, {**inner, "name": "x"})
    else:
        recipe = write(
            models, filled(outer, {"model": {"path": "x"}}) | {"definitions": {"x": inner}}
        )
    assert at_once(models, recipe) == want


def test_three_levels(models: Path) -> None:
    first = INNER["ties"]
    second = filled(OUTER["selection"], first)
    want_second = one_after_another(models, first, OUTER["selection"])
    assert at_once(models, write(models, second)) == want_second
    (models / "out").rename(models / "second")
    merge(write(models, filled(OUTER["breadcrumbs"], "second"), name="o.yaml"), models / "third")
    third = at_once(models, write(models, filled(OUTER["breadcrumbs"], second)))
    del third["config"]
    assert third == bits_of(models / "third")


def test_same_merge_twice_is_computed_once(models: Path) -> None:
    """c + (a + b) and d + (a + b): a and b are read once."""
    outer = {
        "merge_method": "linear",
        "models": ["left", "right"],
        "parameters": {"weight": 0.5},
        "definitions": {
            "sum": INNER["linear"],
            "left": {"merge_method": "linear", "models": ["sum", "c"], "parameters": {"weight": 1}},
            "right": {
                "merge_method": "linear",
                "models": ["sum", "d"],
                "parameters": {"weight": 1},
            },
        },
    }
    plan = make_plan(load_recipe(write(models, outer)))
    assert [sorted(tensor.labels) for tensor in plan.tensors] == [["a", "b", "c", "d"]] * 9
    assert len(plan.checkpoints) == 4


def test_a_tower_of_doubling_merges_is_planned_in_no_time(models: Path) -> None:
    """Each of 40 merges takes the one before twice: 2^40 paths, and 40 steps of work."""
    definitions: dict[str, Any] = {"m0": INNER["linear"]}
    for index in range(1, 40):
        definitions[f"m{index}"] = {
            "merge_method": "slerp", "base_model": f"m{index - 1}", "parameters": {"t": 0.5},
            "models": [f"m{index - 1}", "a" if index % 2 else "b"],
        }  # fmt: skip
        if index == 1:
            continue
        definitions[f"m{index}"]["models"][1] = f"m{index - 2}"
    outer = {"merge_method": "linear", "models": ["m39"], "parameters": {"weight": 1}}
    plan = make_plan(load_recipe(write(models, {**outer, "definitions": definitions})))
    assert all(set(tensor.labels) == {"a", "b"} for tensor in plan.tensors)


def test_seed_of_the_recipe_around(models: Path) -> None:
    """Merges without a seed follow the recipe's, each with draws of its own."""
    inner = {key: value for key, value in INNER["dare_ties"].items() if key != "seed"}
    outer = {"merge_method": "passthrough", "models": ["x"], "definitions": {"x": inner}}
    found = {}
    for seed in (1, 2):
        found[seed] = at_once(models, write(models, {**outer, "seed": seed}))
    assert found[1] != found[2]
    assert found[1] == at_once(models, write(models, {**outer, "seed": 1}))
    twin = {**outer, "models": ["y"], "definitions": {"y": inner}, "seed": 1}
    assert at_once(models, write(models, twin)) != found[1]


def test_dtype_of_the_recipe_around(models: Path) -> None:
    """Float32 between the merges where the recipe says dtype, and not only out_dtype."""
    inner = INNER["linear"]
    outer = {**filled(OUTER["linear"], inner), "dtype": "float32", "out_dtype": "bfloat16"}
    got = read_model_after(models, outer)
    a, b, d = (read_model(models / name)["lm_head.weight"].float() for name in "abd")
    inside = a * 0.5 + b * 0.5
    exact = (inside * 0.5 + d * 0.5).to(torch.bfloat16)
    assert torch.equal(got["lm_head.weight"], exact)
    rounded = read_model_after(models, filled(OUTER["linear"], inner))["lm_head.weight"]
    inside = inside.to(torch.bfloat16).float()
    assert torch.equal(rounded, (inside * 0.5 + d * 0.5).to(torch.bfloat16))


def read_model_after(models: Path, recipe: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    merge(write(models, recipe), models / "at-once", force=True)
    return read_model(models / "at-once")


def test_interrupted_and_resumed_knows_the_seeds_inside(models: Path) -> None:
    from mergeconf.api import fingerprint

    outer = {"merge_method": "passthrough", "models": ["x"]}
    found = set()
    for seed in (1, 2):
        inner = {**INNER["dare_ties"], "seed": seed}
        recipe = write(models, {**outer, "definitions": {"x": inner}})
        found.add(fingerprint(make_plan(load_recipe(recipe))))
    assert len(found) == 2


# --- errors ----------------------------------------------------------------------------------


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "bad.yaml"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(MergeconfError) as caught:
        make_plan(load_recipe(path))
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_circle_of_definitions(models: Path) -> None:
    (said,) = problems(models, """\
        merge_method: passthrough
        models: [x]
        definitions:
          x: {merge_method: linear, models: [y, a], parameters: {weight: 1}}
          y: {merge_method: linear, models: [x, a], parameters: {weight: 1}}
        """)  # fmt: skip
    assert "merges go in a circle: x → y → x" in said
    assert said.startswith("definitions.y.models.0: ")
    assert said.endswith("(bad.yaml:5:38)")


def test_circle_of_documents_and_of_files(models: Path) -> None:
    said = problems(models, """\
        name: x
        merge_method: passthrough
        models: [y]
        ---
        name: y
        merge_method: passthrough
        models: [x]
        """)  # fmt: skip
    assert any("circle: x → y → x" in line for line in said)
    (said,) = problems(models, "merge_method: passthrough\nmodels: [{recipe: bad.yaml}]\n")
    assert "circle: " in said
    assert "bad.yaml → bad.yaml" in said


def test_problems_inside_are_told_with_their_place_and_all_at_once(models: Path) -> None:
    (models / "broken.yaml").write_text(
        "merge_method: linear\nmodels: [a]\nparameters: {wight: 1}\n"
    )
    said = problems(models, """\
        merge_method: linear
        models:
          - model:
              merge_method: tees
              models: [a, b]
            parameters: {weight: 1}
          - recipe: broken.yaml
            parameters: {weight: 1}
          - recipe: absent.yaml
            parameters: {weight: 1}
          - {model: x, parameters: {weight: .5}}
        definitions:
          x: {merge_method: linear, models: [a, b], parameters: {weight: 1}, metadata: {}}
        """)  # fmt: skip
    text = "\n".join(said)
    assert "models.0.model.merge_method: unknown merge method 'tees'; did you mean 'ties'?" in text
    assert "(bad.yaml:4:21)" in text
    assert "parameters.wight: unknown key; did you mean 'weight'? (broken.yaml:3:14)" in text
    assert "absent.yaml: no such file" in text
    assert "definitions.x.metadata: has no effect" in text
    assert len(said) == 4


def test_models_inside_are_missed_with_their_place(models: Path) -> None:
    (said,) = problems(models, """\
        merge_method: passthrough
        models:
          - model: {merge_method: linear, models: [a, nowhere], parameters: {weight: 1}}
        """)  # fmt: skip
    assert said.startswith("nowhere: ")
    assert said.endswith("(bad.yaml:3:47)")


def test_documents_without_one_result(models: Path) -> None:
    one = "merge_method: passthrough\nmodels: [a]\n"
    said = problems(models, f"name: x\n{one}---\nname: y\n{one}")
    assert "which document is the result?" in said[0]
    said = problems(models, f"{one}---\n{one}")
    assert "has no name" in said[0]
    said = problems(models, f"name: x\n{one}---\nname: x\n{one}---\n{one}")
    assert "named 'x' too" in said[0]


def test_unused_merges_are_warned_about_and_checked(models: Path) -> None:
    recipe = load_recipe(write(models, {
        "merge_method": "passthrough", "models": ["a"], "definitions": {"x": INNER["linear"]},
    }))  # fmt: skip
    assert [warning.code for warning in recipe.warnings] == ["unused-definition"]
    recipe = load_recipe(
        write(
            models,
            {**INNER["linear"], "name": "x"},
            {"merge_method": "passthrough", "models": ["a"]},
        )
    )
    assert [warning.code for warning in recipe.warnings] == ["unused-document"]
    with pytest.raises(RecipeError, match="unknown merge method"):
        x = {"merge_method": "lineer", "models": ["a"]}
        load_recipe({"merge_method": "passthrough", "models": ["a"], "definitions": {"x": x}})


def test_take_by_the_name_of_a_definition(models: Path) -> None:
    recipe = {
        "take": "x", "base_model": "base", "models": ["x"], "definitions": {"x": INNER["linear"]},
    }  # fmt: skip
    want = read_model_after(models, INNER["linear"])
    got = read_model_after(models, recipe)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_shapes_that_do_not_fit_name_the_merge(models: Path) -> None:
    write_model(models / "wide", {"model.norm.weight": torch.ones(20)})
    with pytest.raises(PlanError) as caught:
        make_plan(load_recipe(write(models, {
            "merge_method": "linear", "models": ["x", "wide"], "parameters": {"weight": 1},
            "definitions": {"x": {"merge_method": "linear", "models": ["a", "b"],
                                  "parameters": {"weight": 1}}},
        })))  # fmt: skip
    assert any("x [16], wide [20]" in str(problem) for problem in caught.value.problems)


def test_explain_and_plan_show_what_is_inside(models: Path, capsys: Any) -> None:
    from support.command import call

    recipe = write(models, filled(OUTER["linear"], {**INNER["ties"], "name": "inner"}))
    out = call("explain", recipe, "lm_head.weight").out
    assert "inner" not in out.split("inputs")[0]
    assert all(f"read {name}" in out for name in ("base", "a", "b", "d"))
    out = call("plan", recipe).out
    assert "merge by ties" in out
    data = json.loads(call("plan", recipe, "--json").out)
    assert len(data["models"]) == 2
