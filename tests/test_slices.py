"""Slices: layers of models put together to a new depth, checked with transformers and by hand."""

import json
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.errors import PlanError, RecipeError
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from support import deep_models as deep
from support.deep_models import FULL, MIXED, SLIDING
from support.models import llama_like, load_exactly, read_model, write_model


def slices(*ranges, method="passthrough", **more):
    """Return a recipe: each slice a list of (model, first, end)."""
    return {
        "merge_method": method,
        "slices": [
            {"sources": [{"model": str(m), "layer_range": [a, b]} for m, a, b in sources]}
            for sources in ranges
        ],
        **more,
    }


@pytest.fixture
def hand(tmp_path):
    """Three models of four layers, written by hand."""
    config = {"num_hidden_layers": 4, "tie_word_embeddings": False, "architectures": ["X"]}
    return [
        write_model(tmp_path / f"m{seed}", llama_like(seed, layers=4), config=config)
        for seed in range(3)
    ]


def plan_of(recipe):
    return make_plan(load_recipe(recipe))


def origins(plan):
    """Return which model and layer each output layer comes from."""
    return [
        [(label.rpartition("/")[2], int(stored.name.split(".")[2]))
         for label, stored in zip(tensor.labels, tensor.inputs, strict=True)]
        for tensor in plan.tensors if tensor.name.endswith("input_layernorm.weight")
    ]  # fmt: skip


# --- real models ------------------------------------------------------------------------------

UP = [(0, 0, 3), (1, 1, 4)]
"""Depth up-scaling from two models: layers 0-2 of the first, 1-3 of the second."""
TWICE = [(0, 0, 4), (0, 1, 3), (0, 1, 4)]
"""Some layers of one model twice and three times."""
DOWN = [(0, 0, 1), (0, 3, 4)]
KINDS = {
    "llama": {}, "llama-tied": {}, "gpt2": {}, "qwen2": {}, "qwen3": {}, "qwen3-tied": {},
    "gemma2-tied": {}, "gemma3": {}, "gemma3-tied": {},
}  # fmt: skip


@pytest.mark.parametrize("ranges", [UP, TWICE, DOWN], ids=["up", "twice", "down"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_together_is_the_model_assembled_by_hand(kind, ranges, tmp_path):
    models = [deep.save(kind, i, tmp_path / f"m{i}") for i in range(2)]
    merge(slices(*([(tmp_path / f"m{i}", a, b)] for i, a, b in ranges)), tmp_path / "out")
    result = load_exactly(tmp_path / "out")
    order = [(i, number) for i, a, b in ranges for number in range(a, b)]
    layers = [deep.layer(models[i], number) for i, number in order]
    types = getattr(models[0].config, "layer_types", None)
    changes = {"layer_types": [types[number] for _, number in order]} if types else {}
    wanted = deep.by_hand(kind, layers, models[0], models[order[-1][0]], **changes)
    assert torch.equal(deep.output_of(result), deep.output_of(wanted))
    assert len(read_model(tmp_path / "out")) == len(
        {v.data_ptr() for v in result.state_dict().values()}
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_merge_of_slices_is_the_method_layer_by_layer(kind, tmp_path):
    models = [deep.save(kind, i, tmp_path / f"m{i}") for i in range(2)]
    a, b = tmp_path / "m0", tmp_path / "m1"
    recipe = slices(
        [(a, 0, 3), (b, 1, 4)], [(a, 2, 4), (b, 2, 4)], method="slerp", base_model=str(a)
    )
    merge({**recipe, "parameters": {"t": [0.0, 0.3, 1.0]}}, tmp_path / "out")
    result = load_exactly(tmp_path / "out")
    slerp = all_methods()["slerp"]
    pairs = [(0, 1, 0.0), (1, 2, 0.3), (2, 3, 1.0), (2, 2, 0.0), (3, 3, 1.0)]
    layers = []
    for own, other, t in pairs:
        left, right = deep.layer(models[0], own), deep.layer(models[1], other)
        layers.append(
            {n: evaluate(slerp, left[n], [right[n]], {"t": t}) for n in left}
        )  # fmt: skip
    ends = [model.state_dict() for model in models]
    outside = {
        n: evaluate(slerp, ends[0][n], [ends[1][n]], {"t": 0.0})
        for n in ends[0] if not n.startswith(deep.stack_of(models[0]))
    }  # fmt: skip
    types = getattr(models[0].config, "layer_types", None)
    changes = {"layer_types": [types[own] for own, _, _ in pairs]} if types else {}
    wanted = deep.by_hand(kind, layers, models[0], models[0], **changes)
    with torch.no_grad():
        for name, value in outside.items():
            wanted.state_dict()[name].copy_(value)
    assert torch.equal(deep.output_of(result), deep.output_of(wanted))


def test_kinds_of_layers_that_a_config_gives_by_a_rule_are_kept(tmp_path):
    """Gemma 2 and 3 as on the Hub say no `layer_types`; positions would decide, wrongly."""
    deep.save("gemma3", 0, tmp_path / "m", layer_types=None, sliding_window_pattern=2)
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    kinds = config.pop("layer_types")
    assert kinds == [SLIDING, FULL] * 2
    path.write_text(json.dumps(config))
    recipe = slices([("m", 0, 3)], [("m", 0, 3)])
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    merge(tmp_path / "r.yaml", tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["layer_types"] == [SLIDING, FULL, SLIDING] * 2
    assert load_exactly(tmp_path / "out").config.layer_types == written["layer_types"]


CASES = [{"filter": "w1", "value": [0, 1]}, {"filter": "experts.3.", "value": 1}, {"value": 0.5}]


# --- names, layers, conservation --------------------------------------------------------------


def test_layers_are_numbered_in_order_of_the_slices(hand):
    plan = plan_of(slices([(hand[0], 1, 3)], [(hand[1], 0, 2)], [(hand[0], 1, 2)]))
    assert origins(plan) == [[("m0", 1)], [("m0", 2)], [("m1", 0)], [("m1", 1)], [("m0", 1)]]
    assert len(plan.tensors) == 5 * 5 + 3


def test_embeddings_come_from_the_first_slice_norm_and_head_from_the_last(hand):
    """mergekit takes final norm and head from the first slice's models where it knows no table."""
    plan = plan_of(slices([(hand[0], 0, 2)], [(hand[1], 0, 1)], [(hand[2], 2, 4)]))
    ends = {
        tensor.name: tensor.labels[0].rpartition("/")[2]
        for tensor in plan.tensors if ".layers." not in tensor.name
    }  # fmt: skip
    assert ends == {
        "model.embed_tokens.weight": "m0", "model.norm.weight": "m2", "lm_head.weight": "m2",
    }  # fmt: skip


def test_every_tensor_that_no_slice_takes_is_listed(hand):
    plan = plan_of(slices([(hand[0], 0, 3)], [(hand[1], 1, 4)]))
    dropped = {(item.name, item.models[0].rpartition("/")[2]): item.reason for item in plan.dropped}
    used = {
        (stored.name, label.rpartition("/")[2])
        for tensor in plan.tensors
        for stored, label in zip(tensor.inputs, tensor.labels, strict=True)
    }
    every = {(name, model) for name in llama_like(0, layers=4) for model in ("m0", "m1")}
    assert used | set(dropped) == every
    assert not used & set(dropped)
    assert dropped["model.layers.3.mlp.up_proj.weight", "m0"] == "layer 3, which no slice takes"
    assert "another slice" in dropped["model.norm.weight", "m0"]


def test_rules_speak_of_names_and_layers_of_the_output(hand):
    recipe = slices([(hand[0], 2, 4), (hand[1], 0, 2)], [(hand[0], 0, 2), (hand[2], 2, 4)],
                    method="linear", parameters={"weight": 1.0})  # fmt: skip
    recipe["rules"] = [
        {"match": "model.layers.0.mlp.*", "drop": True},
        {"layers": -1, "take": str(hand[2])},
    ]
    plan = plan_of(recipe)
    assert plan.rule_counts == (2, 5)
    assert origins(plan)[3] == [("m2", 3)]
    assert plan.tensor("model.layers.0.mlp.up_proj.weight") is None
    recipe["rules"] = [{"layers": 4, "drop": True}]
    with pytest.raises(PlanError, match="layers 4 fits none of 23 tensors"):
        plan_of(recipe)


def test_a_rule_may_serve_a_slice_that_the_method_does_not_suit(hand):
    recipe = slices([(hand[0], 0, 2), (hand[1], 0, 2)], [(hand[0], 2, 4)],
                    method="slerp", base_model=str(hand[0]), parameters={"t": 0.5})  # fmt: skip
    with pytest.raises(RecipeError, match=r"slices\.1\.sources: 'slerp' needs exactly 1 model"):
        load_recipe(recipe)
    outside = {"match": "re:model.norm.weight|lm_head.weight", "take": "base_model"}
    recipe["rules"] = [{"layers": "2-3", "merge_method": "passthrough"}, outside]
    assert origins(plan_of(recipe))[1:3] == [[("m0", 1), ("m1", 1)], [("m0", 2)]]
    recipe["rules"] = [{"layers": "3", "merge_method": "passthrough"}, outside]
    with pytest.raises(PlanError, match=r"slices\.1\.sources: 'slerp' needs") as error:
        plan_of(recipe)
    assert len(error.value.problems) == 1


def test_draws_depend_on_the_output_name(hand, tmp_path):
    recipe = slices([(hand[0], 0, 1), (hand[1], 0, 1)], [(hand[0], 0, 1), (hand[1], 0, 1)],
                    method="parameter_selection", parameters={"resample": 0})  # fmt: skip
    merge(recipe, tmp_path / "out")
    made = read_model(tmp_path / "out")
    first, second = (made[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2))
    assert not torch.equal(first, second)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_slices_are_as_an_oracle_has_them(data):
    """Names, sources and conservation, for models of other depths, by a plain loop."""
    depths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3), label="depths")
    models = [deep.headers(f"m{i}", llama_like(i, layers=n)) for i, n in enumerate(depths)]
    parts = []
    for _ in range(data.draw(st.integers(1, 4), label="slices")):
        chosen = data.draw(st.permutations(range(len(depths))), label="models")
        chosen = chosen[: data.draw(st.integers(1, len(depths)))]
        length = data.draw(st.integers(1, min(depths[i] for i in chosen)), label="length")
        starts = [data.draw(st.integers(0, depths[i] - length)) for i in chosen]
        parts.append([(f"m{i}", a, a + length) for i, a in zip(chosen, starts, strict=True)])
    recipe = load_recipe(slices(*parts, method="linear", parameters={"weight": 1.0}))
    plan = make_plan(recipe, open_model=lambda path, label: models[int(label[1:])])
    rests = [n.removeprefix("model.layers.0.") for n in models[0].tensors if ".layers.0." in n]
    wanted, index = {}, 0
    for part in parts:
        for step in range(part[0][2] - part[0][1]):
            for rest in rests:
                wanted[f"model.layers.{index}.{rest}"] = [
                    (m, f"model.layers.{a + step}.{rest}") for m, a, _ in part
                ]
            index += 1
    wanted["model.embed_tokens.weight"] = [(m, "model.embed_tokens.weight") for m, _, _ in parts[0]]
    for name in ("model.norm.weight", "lm_head.weight"):
        wanted[name] = [(m, name) for m, _, _ in parts[-1]]
    found = {
        t.name: [(label, s.name) for label, s in zip(t.labels, t.inputs, strict=True)]
        for t in plan.tensors
    }  # fmt: skip
    assert found == wanted
    used = {pair for pairs in wanted.values() for pair in pairs}
    named = {m for part in parts for m, _, _ in part}
    every = {(m, n) for i, model in enumerate(models) if (m := f"m{i}") in named
             for n in model.tensors}  # fmt: skip
    left = [(label, item.name) for item in plan.dropped for label in item.models]
    assert len(left) == len(set(left))
    assert set(left) == every - used


def test_many_tensors_are_planned_in_time():
    tensors = {
        f"model.layers.{i}.mlp.experts.{j}.w{k}.weight": torch.ones(1)
        for i in range(40) for j in range(128) for k in range(3)
    }  # fmt: skip
    models = {name: deep.headers(name, tensors) for name in ("a", "b")}
    recipe = slices([("a", 0, 24), ("b", 8, 32)], [("a", 16, 40), ("b", 16, 40)], method="slerp",
                    base_model="a", parameters={"t": CASES})  # fmt: skip
    begun = time.process_time()
    plan = make_plan(load_recipe(recipe), open_model=lambda path, label: models[label])
    assert len(plan.tensors) == 48 * 128 * 3
    assert time.process_time() - begun < 10


# --- parameters -------------------------------------------------------------------------------


def weights_of(plan, name="mlp.up_proj.weight"):
    found = [t for t in plan.tensors if t.name.endswith(name)]
    return [t.decision.arguments["weight"] for t in found]


def test_gradients_run_over_the_layers_of_the_slice(hand):
    recipe = slices([(hand[0], 0, 3)], [(hand[1], 0, 1)], [(hand[2], 2, 4)], method="linear")
    plan = plan_of({**recipe, "parameters": {"weight": [1.0, 9.0]}})
    assert weights_of(plan) == [(1.0,), (5.0,), (9.0,), (9.0,), (1.0,), (9.0,)]  # one layer: t = 1
    assert plan.tensor("model.norm.weight").decision.arguments["weight"] == (1.0,)


def test_precedence_of_rule_source_slice_and_recipe(hand):
    recipe = slices(*[[(hand[0], 0, 1)]] * 4, method="linear", parameters={"weight": 1.0})
    first, second, third, _ = recipe["slices"]
    for part in (first, second, third):
        part["parameters"] = {"weight": 2.0}
    for part in (first, second):
        part["sources"][0]["parameters"] = {"weight": 3.0}
    recipe["rules"] = [{"layers": 0, "parameters": {"weight": 4.0}}]
    plan = plan_of(recipe)
    assert weights_of(plan) == [(4.0,), (3.0,), (2.0,), (1.0,)]
    assert plan.tensor("model.embed_tokens.weight").decision.arguments["weight"] == (3.0,)
    assert plan.tensor("lm_head.weight").decision.arguments["weight"] == (1.0,)
    origin = plan.tensor("model.layers.1.mlp.up_proj.weight").decision.parameters[0].origins[0]
    assert origin.where == "slices.1.sources.0.parameters.weight"


def test_a_case_that_fits_nothing_in_its_slice_passes_if_it_fits_elsewhere(hand):
    recipe = slices([(hand[0], 0, 2)], [(hand[0], 2, 4)], method="linear")
    for part in recipe["slices"]:
        part["parameters"] = {"weight": [{"filter": "lm_head", "value": 2}, {"value": 1}]}
    assert plan_of(recipe).warnings == ()
    recipe["slices"][0]["parameters"] = {"weight": [{"filter": "mpl", "value": 2}, {"value": 1}]}
    with pytest.raises(PlanError, match="filter 'mpl' fits none") as error:
        plan_of(recipe)
    assert [p.where for p in error.value.problems] == ["slices.0.parameters.weight.0"]


def test_filters_of_a_model_look_at_the_name_in_that_model(hand):
    """As in mergekit: `scale` of passthrough belongs to the input, `t` of slerp to the output."""
    recipe = slices([(hand[0], 2, 4)], [(hand[0], 0, 2)])
    cases = [{"filter": "layers.3.", "value": 5.0}, {"value": 1.0}]
    recipe["slices"][0]["sources"][0]["parameters"] = {"scale": cases}
    plan = plan_of(recipe)
    scales = [t.decision.arguments["scale"] for t in plan.tensors if "up_proj" in t.name]
    assert scales[:2] == [1.0, 5.0]
    assert len(set(scales[2:])) == 1  # the default


def test_the_base_of_a_slice_is_the_source_that_is_the_base(hand):
    recipe = slices([(hand[0], 0, 2), (hand[1], 2, 4)], [(hand[1], 0, 1), (hand[2], 3, 4)],
                    method="task_arithmetic", base_model=str(hand[1]),
                    parameters={"weight": 0.5})  # fmt: skip
    assert origins(plan_of(recipe)) == [
        [("m1", 2), ("m0", 0)], [("m1", 3), ("m0", 1)], [("m1", 0), ("m2", 3)],
    ]  # fmt: skip
    recipe["slices"][1]["base_model"] = str(hand[2])
    assert origins(plan_of(recipe))[2] == [("m2", 3), ("m1", 0)]


# --- problems with models at hand -------------------------------------------------------------


def test_ranges_beyond_the_layers_are_all_reported(hand):
    text = (
        "merge_method: passthrough\nslices:\n"
        f"  - sources: [{{model: {hand[0]}, layer_range: [2, 6]}}]\n"
        f"  - sources:\n    - model: {hand[1]}\n      layer_range: [7, 9]\n"
    )
    with pytest.raises(PlanError) as error:
        plan_of(text)
    first, second = error.value.problems
    assert first.where == "slices.0.sources.0.layer_range"
    assert f"[2, 6] goes beyond the 4 layers of '{hand[0]}'" in first.message
    assert first.hint.endswith("its layers are 0 to 3, and a range ends at most at 4: [2, 4]")
    assert (second.location.line, second.location.column) == (6, 20)


def test_a_model_without_that_stack(hand, tmp_path):
    other = {n.replace("model.layers", "h"): t for n, t in llama_like(0, layers=4).items()}
    write_model(tmp_path / "other", other)
    with pytest.raises(PlanError) as error:
        plan_of(slices([(hand[0], 0, 2)], [(tmp_path / "other", 0, 2)]))
    (problem,) = error.value.problems
    assert problem.where == "slices.1.sources.0"
    assert problem.message.endswith("has no layers 'model.layers'")
    assert problem.hint == "its stacks of layers: h (4 layers)"


def test_several_stacks_are_ambiguous_unless_the_config_speaks_of_one(tmp_path):
    tensors = {f"{stack}.{i}.w": torch.ones(2) for stack in ("enc.block", "dec.block")
               for i in range(3)} | {"cls.0.w": torch.ones(2)}  # fmt: skip
    write_model(tmp_path / "m", tensors)
    with pytest.raises(PlanError, match=r"several stacks of layers: .*enc\.block \(3 lay") as error:
        plan_of(slices([(tmp_path / "m", 0, 2)]))
    assert "modules: {" in error.value.problems[0].hint
    tensors["dec.block.3.w"] = torch.ones(2)
    write_model(tmp_path / "m", tensors, config={"num_hidden_layers": 4})
    plan = plan_of(slices([(tmp_path / "m", 0, 1)]))
    assert sum("dec.block" in tensor.name for tensor in plan.tensors) == 1
    assert sum("enc.block" in tensor.name for tensor in plan.tensors) == 3


def test_a_layer_without_number(tmp_path):
    write_model(tmp_path / "m", {"a.weight": torch.ones(2)})
    with pytest.raises(PlanError, match="has no layers: no tensor has a number in its name"):
        plan_of(slices([(tmp_path / "m", 0, 1)]))


# --- config -----------------------------------------------------------------------------------


def written(tmp_path, config, *ranges, layers=4):
    write_model(tmp_path / "m", llama_like(0, layers=layers), config=config)
    plan = plan_of(slices(*([(tmp_path / "m", a, b)] for a, b in ranges)))
    content = plan.sidecars["config.json"]
    return json.loads(content if isinstance(content, bytes) else content.read_text()), plan


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_the_number_of_layers_is_set_under_its_own_key(key, tmp_path):
    config, _ = written(tmp_path, {key: 4, "vocab_size": 4}, (0, 3), (1, 4))
    assert config == {key: 6, "vocab_size": 4}
    config, _ = written(tmp_path, {"text_config": {key: 4}, "vision_config": {key: 4}}, (0, 3))
    assert config == {"text_config": {key: 3}, "vision_config": {key: 4}}


def test_lists_of_one_item_a_layer_follow_the_layers(tmp_path):
    config = {
        "num_hidden_layers": 4, "layer_types": MIXED, "no_rope_layers": [1, 1, 1, 0],
        "num_key_value_heads": [1, 2, 4, 8], "eos_token_id": [1, 2, 3, 4], "heads": [1, 2, 3],
        "mlp_only_layers": [0, 3], "architectures": ["A"],
    }  # fmt: skip
    found, _ = written(tmp_path, config, (2, 4), (0, 3), (3, 4))
    assert found == config | {
        "num_hidden_layers": 6,
        "layer_types": [FULL, SLIDING, SLIDING, SLIDING, FULL, SLIDING],
        "no_rope_layers": [1, 0, 1, 1, 1, 0],
        "num_key_value_heads": [4, 8, 1, 2, 4, 8],
        "mlp_only_layers": [1, 2, 5],
    }


def test_lists_follow_the_model_that_gives_the_layer(tmp_path):
    for name, layers, types in (("a", 2, ["x", "y"]), ("b", 3, ["p", "q", "r"])):
        config = {"num_hidden_layers": layers, "layer_types": types}
        write_model(tmp_path / name, llama_like(0, layers=layers), config=config)
    plan = plan_of(slices([(tmp_path / "a", 0, 2)], [(tmp_path / "b", 1, 3)]))
    config = json.loads(plan.sidecars["config.json"])
    assert config == {"num_hidden_layers": 4, "layer_types": ["x", "y", "q", "r"]}


# config, ranges, what it says afterwards
WINDOWS = [
    ({"max_window_layers": 4}, [(0, 3), (1, 4)], {"max_window_layers": 6}),
    ({"max_window_layers": 28}, [(0, 3), (1, 4)], {"max_window_layers": 28}),
    ({"max_window_layers": 2, "use_sliding_window": False}, [(0, 2)],
     {"max_window_layers": 2, "use_sliding_window": False}),
    ({"max_window_layers": 2, "use_sliding_window": True}, [(0, 3), (3, 4)],
     {"max_window_layers": 2, "use_sliding_window": True}),
    ({"max_window_layers": 2, "use_sliding_window": True}, [(0, 2), (1, 4)],
     {"max_window_layers": 3, "use_sliding_window": True,
      "layer_types": [FULL, FULL, FULL, SLIDING, SLIDING]}),
    ({"max_window_layers": 2, "use_sliding_window": True}, [(0, 3), (1, 4)],
     {"max_window_layers": 2, "use_sliding_window": True,
      "layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING]}),
    ({"model_type": "gemma2"}, [(0, 2), (2, 4), (0, 2)], {"model_type": "gemma2"}),
    ({"model_type": "gemma2"}, [(0, 1), (2, 4)],
     {"model_type": "gemma2", "layer_types": [SLIDING, SLIDING, FULL]}),
    ({"first_k_dense_replace": 1}, [(0, 1), (0, 4)], {"first_k_dense_replace": 2}),
    ({"first_k_dense_replace": 1}, [(1, 4)], {"first_k_dense_replace": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "ranges", "wanted"), WINDOWS)
def test_what_a_config_says_by_a_number_stays_true(config, ranges, wanted, tmp_path):
    found, plan = written(tmp_path, {"num_hidden_layers": 4, **config}, *ranges)
    assert found == {"num_hidden_layers": sum(b - a for a, b in ranges), **wanted}
    assert plan.warnings == ()


def test_layers_behind_those_that_the_config_counts(tmp_path):
    """DeepSeek V3 and GLM 4 MoE store layers for further tokens behind the others."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    found, _ = written(tmp_path, config, (0, 3), (1, 5), layers=5)
    assert found == {"num_hidden_layers": 6, "num_nextn_predict_layers": 1}
    found, _ = written(tmp_path, config, (0, 4), (1, 4), layers=5)
    assert found == {"num_hidden_layers": 7, "num_nextn_predict_layers": 0}


def test_what_a_config_cannot_say_is_a_warning(tmp_path):
    _, plan = written(tmp_path, {"hidden_size": 4}, (0, 3))
    assert [p.code for p in plan.warnings] == ["depth-not-in-config"]
    config = {"num_hidden_layers": 4, "decoder_sparse_step": 2}
    _, plan = written(tmp_path, config, (0, 2), (2, 4), (2, 4))
    assert plan.warnings == ()
    _, plan = written(tmp_path, config, (0, 3), (2, 4))
    assert [(p.code, p.where) for p in plan.warnings] == [
        ("layer-pattern", "config.json.decoder_sparse_step")
    ]
    _, plan = written(
        tmp_path, {"num_hidden_layers": 4, "first_k_dense_replace": 1}, (0, 2), (0, 2)
    )
    assert [p.code for p in plan.warnings] == ["layer-pattern"]


# --- tied heads -------------------------------------------------------------------------------


def test_a_tied_model_before_an_untied_one_gets_the_untied_head(tmp_path):
    deep.save("llama-tied", 0, tmp_path / "tied")
    deep.save("llama", 1, tmp_path / "free")
    merge(slices([(tmp_path / "tied", 0, 2)], [(tmp_path / "free", 2, 4)]), tmp_path / "out")
    result = load_exactly(tmp_path / "out")
    assert result.config.tie_word_embeddings is False
    free, tied = (read_model(tmp_path / name) for name in ("free", "tied"))
    state = result.state_dict()
    assert torch.equal(state["lm_head.weight"], free["lm_head.weight"])
    assert torch.equal(state["model.embed_tokens.weight"], tied["model.embed_tokens.weight"])


def test_an_untied_model_before_a_tied_one_gets_the_tied_head(tmp_path):
    deep.save("llama-tied", 0, tmp_path / "tied")
    deep.save("llama", 1, tmp_path / "free")
    merge(slices([(tmp_path / "free", 0, 2)], [(tmp_path / "tied", 2, 4)]), tmp_path / "out")
    result = load_exactly(tmp_path / "out")
    tied = read_model(tmp_path / "tied")
    assert torch.equal(result.state_dict()["lm_head.weight"], tied["model.embed_tokens.weight"])
