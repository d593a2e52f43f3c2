"""Modules: models with several stacks, each merged or put together in its own way."""

import json

import pytest
import torch

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.errors import PlanError
from support.models import load_exactly, logits, made, read_model, write_model


def plan_of(recipe):
    return make_plan(load_recipe(recipe))


def part(model, *ranges):
    return {"slices": [{"sources": [{"model": str(model), "layer_range": r}]} for r in ranges]}


def taken(plan):
    """Return from which model each output tensor comes."""
    return {t.name: [label.rpartition("/")[2] for label in t.labels] for t in plan.tensors}


# --- T5: encoder and decoder ------------------------------------------------------------------


def test_an_encoder_and_a_decoder_of_other_depths_load_and_run(tmp_path):
    one, two = made("t5", 0), made("t5", 1)
    recipe = {
        "merge_method": "passthrough",
        "modules": {"encoder": part(one, [0, 2], [0, 2]), "decoder": part(two, [1, 2], [0, 1])},
    }
    merge(recipe, tmp_path / "out")
    result = load_exactly(tmp_path / "out")
    assert (result.config.num_layers, result.config.num_decoder_layers) == (4, 2)
    state = result.state_dict()
    first, second = read_model(one), read_model(two)
    wo = "layer.{}.DenseReluDense.wo.weight"
    for number, origin in enumerate((0, 1, 0, 1)):
        got = state[f"encoder.block.{number}.{wo.format(1)}"]
        assert torch.equal(got, first[f"encoder.block.{origin}.{wo.format(1)}"])
    for number, origin in enumerate((1, 0)):
        got = state[f"decoder.block.{number}.{wo.format(2)}"]
        assert torch.equal(got, second[f"decoder.block.{origin}.{wo.format(2)}"])
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(state[bias], second[bias])
    assert torch.equal(state["encoder.final_layer_norm.weight"],
                       first["encoder.final_layer_norm.weight"])  # fmt: skip
    assert logits(result).isfinite().all()


def test_each_module_has_its_own_parameters(tmp_path):
    one, two = str(made("t5", 0)), str(made("t5", 1))
    recipe = {
        "merge_method": "slerp",
        "base_model": one,
        "parameters": {"t": 0.25},
        "modules": {
            "encoder": {"models": [one, two], "parameters": {"t": [0.5, 1.0]}},
            "decoder": {"models": [two]},
        },
    }
    plan = plan_of(recipe)
    at = {t.name: t.decision.arguments["t"] for t in plan.tensors}
    assert at["encoder.block.0.layer.0.layer_norm.weight"] == 0.5
    assert at["encoder.block.1.layer.0.layer_norm.weight"] == 1.0
    assert at["encoder.final_layer_norm.weight"] == 0.5
    assert {at[name] for name in at if name.startswith(("decoder", "shared"))} == {0.25}
    assert plan.dropped == ()
    merge(recipe, tmp_path / "out")
    load_exactly(tmp_path / "out")


# --- a text and a vision tower ----------------------------------------------------------------


def some(name):
    return torch.full((2, 2), float(sum(map(ord, name)) % 97))


def vision_language(*, style="new", text=3, vision=4):
    """Return names as of Qwen3-VL (new), or of LLaVA and Gemma 3 as first published (old)."""
    eye, mouth = {
        "new": ("model.visual.blocks", "model.language_model.layers"),
        "old": ("vision_tower.vision_model.encoder.layers", "language_model.model.layers"),
    }[style]
    outer, inner = mouth.rpartition(".")[0], eye.rpartition(".")[0]
    names = [f"{outer}.embed_tokens.weight", f"{outer}.norm.weight"]
    names += ["lm_head.weight" if style == "new" else "language_model.lm_head.weight"]
    names += [f"{mouth}.{i}.mlp.weight" for i in range(text)]
    names += [f"{eye}.{i}.mlp.weight" for i in range(vision)]
    names += [f"{inner}.patch_embed.weight", f"{inner}.post_layernorm.weight"]
    names += [
        "model.visual.merger.norm.weight" if style == "new" else "multi_modal_projector.w.weight"
    ]
    return {name: some(name) for name in names}


@pytest.fixture(params=["new", "old"])
def pair(request, tmp_path):
    """Two models with a text and a vision tower."""
    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 4}}
    if request.param == "old":
        config["vision_config"] = {"num_hidden_layers": 4}
    return [
        write_model(tmp_path / n, vision_language(style=request.param), config=config)
        for n in ("a", "b")
    ]


def test_text_and_vision_each_from_its_own_slices(pair):
    one, two = pair
    recipe = {
        "merge_method": "passthrough",
        "modules": {
            "vision_tower": part(two, [0, 1], [2, 4]),
            "text_decoder": part(one, [0, 2], [1, 3]),
        },
    }
    plan = plan_of(recipe)
    found = taken(plan)
    assert sum(".layers." in n and "language" in n for n in found) == 4
    for name, models in found.items():
        if "merger" not in name and "multi_modal" not in name:
            assert models == ["b" if "visi" in name or "visual" in name else "a"], name
    config = json.loads(plan.sidecars["config.json"])
    assert config["text_config"] == {"num_hidden_layers": 4}
    assert list(config["vision_config"].values()) == [3]
    sources = {t.name: t.inputs[0].name for t in plan.tensors}
    moved = next(n for n in sources if n.endswith("s.2.mlp.weight") and "vis" in n)
    assert ".3.mlp" in sources[moved]


def test_a_projector_can_be_a_module(pair):
    one, two = (str(folder) for folder in pair)
    modules = {
        "text_decoder": {"models": [one]},
        "vision_tower": {"models": [one]},
        "multi_modal_projector": {"models": [two]},
    }
    found = taken(plan_of({"merge_method": "passthrough", "modules": modules}))
    for name, models in found.items():
        assert models == (["b"] if "merger" in name or "multi_modal" in name else ["a"]), name


def test_a_module_that_nobody_names_is_an_error_or_a_rule(pair):
    """mergekit writes an output without these tensors."""
    one, two = (str(folder) for folder in pair)
    recipe = {"merge_method": "passthrough", "modules": {"text_decoder": {"models": [two]}}}
    with pytest.raises(PlanError) as error:
        plan_of({**recipe, "base_model": one})
    (problem,) = error.value.problems
    assert problem.where == "modules"
    assert "no module names" in problem.message
    assert "take: base_model" in problem.hint
    rule = {"match": "re:.*visi.*|.*visual.*", "take": "base_model"}
    found = taken(plan_of({**recipe, "base_model": one, "rules": [rule]}))
    assert all(models == ["a"] for name, models in found.items() if "vis" in name)
    assert len(found) == len(vision_language())
    plan = plan_of({**recipe, "base_model": one, "rules": [{**rule, "take": None, "drop": True}]})
    assert not any("vis" in tensor.name for tensor in plan.tensors)
    assert plan.rule_counts[0] == len(plan.dropped)


def test_an_unknown_module_is_told_with_the_valid_ones(pair):
    folder = pair[0]
    text = f"merge_method: passthrough\nmodules:\n  text_decodr: {{models: [{folder}]}}\n"
    with pytest.raises(PlanError) as error:
        plan_of(text)
    (problem,) = error.value.problems
    assert (problem.where, problem.location.line, problem.location.column) == (
        "modules.text_decodr", 3, 3,
    )  # fmt: skip
    assert problem.message == f"'{folder}' has no module 'text_decodr'"
    assert "did you mean 'text_decoder'? valid: " in problem.hint
    assert "vision_tower" in problem.hint


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"mlp": {"models": ["M"]}}, "'mlp'"),
        ({"text_decoder": {"models": ["M"]}, "language_model": {"models": ["M"]}}, "mean the same"),
        ({"default": {"models": ["M"]}}, "no module names"),  # the text, of which the config speaks
        ({"text_decoder": part("M", [0, 9])}, "beyond the 3 layers"),
    ],
)
def test_modules_that_cannot_be_told(modules, message, pair):
    recipe = json.loads(
        json.dumps({"merge_method": "passthrough", "modules": modules}).replace("M", str(pair[0]))
    )
    with pytest.raises(PlanError, match=message):
        plan_of(recipe)


def test_default_is_the_only_stack(tmp_path):
    tensors = {f"model.layers.{i}.w": some(str(i)) for i in range(3)} | {"lm_head.w": some("h")}
    folder = write_model(tmp_path / "m", tensors)
    recipe = {"merge_method": "passthrough", "modules": {"default": part(folder, [0, 3], [1, 2])}}
    assert len(plan_of(recipe).tensors) == 5


def test_a_part_without_layers_cannot_be_sliced(tmp_path):
    folder = write_model(tmp_path / "m", vision_language(style="old"))
    recipe = {
        "merge_method": "passthrough",
        "modules": {"multi_modal_projector": part(folder, [0, 1])},
    }
    with pytest.raises(PlanError, match="'multi_modal_projector' has no layers to slice"):
        plan_of(recipe)
