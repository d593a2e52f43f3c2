"""Adapters that are damaged, of another kind, or of another model: one clear problem each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeconf.api import load_recipe, make_plan
from mergeconf.checkpoint.adapter import open_adapter
from mergeconf.checkpoint.adapter_match import match_adapter
from mergeconf.checkpoint.adapter_names import Ambiguous, NameIndex
from mergeconf.errors import CheckpointError, MergeconfError, PlanError
from mergeconf.recipe import Recipe
from support.adapters import embedding, linear, magnitude, some, write_adapter
from support.models import write_model

WIDTH = 8
Q = "model.layers.0.self_attn.q_proj"
SHAPES = {
    "model.embed_tokens.weight": (20, WIDTH), f"{Q}.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (12, WIDTH), "model.norm.weight": (WIDTH,),
}  # fmt: skip
GOOD = linear(Q, WIDTH, WIDTH)


def write_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    tensors = {name: some(*shape, seed=1).to(dtype) for name, shape in SHAPES.items()}
    write_model(folder, tensors, config={})


def recipe_of(folder: Path, model: Any = "base+adapter") -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"merge_method": "passthrough", "models": [{"model": model}]}))
    return load_recipe(path)


def problem_of(folder: Path) -> str:
    """Return the only problem of a plan; it has its place in the recipe."""
    with pytest.raises((CheckpointError, PlanError)) as caught:
        make_plan(recipe_of(folder))
    (problem,) = caught.value.problems
    assert problem.location is not None
    said = f"{problem.message} {problem.hint}"
    assert not problem.message[:1].isupper()
    assert "please" not in said and "Error" not in said
    return str(problem)


OPTIONS = {
    "alora_invocation_tokens": [1, 2], "arrow_config": {"top_k": 2}, "kasa_config": {"beta": 1},
    "layer_replication": [[0, 4], [2, 5]], "megatron_config": {"x": 1},
    "monteclora_config": {"num_samples": 8}, "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [0, 5], "use_bdlora": {"nblocks": 2}, "use_qalora": True,
}  # fmt: skip


@pytest.mark.parametrize("option", list(OPTIONS))
def test_an_option_that_is_not_followed_is_named(tmp_path, option):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, **{option: OPTIONS[option]})
    assert f"{option} is not supported; " in problem_of(tmp_path)


@pytest.mark.parametrize(
    "kind", ["IA3", "LOHA", "LOKR", "OFT", "VERA", "ADALORA", "PREFIX_TUNING", "XLORA", None]
)
def test_another_kind_of_adapter_is_named(tmp_path, kind):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, peft_type=kind)
    said = problem_of(tmp_path)
    assert f"is an adapter of kind {kind or 'an unknown kind'}; only LORA is read" in said
    assert ("there is nothing to merge" if kind == "PREFIX_TUNING" else "merge_and_unload") in said


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changed_the_base_is_refused(tmp_path, start):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, init_lora_weights=start)
    said = problem_of(tmp_path)
    assert f"init_lora_weights is {start}" in said
    assert "path_initial_model_for_weight_conversion" in said


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_as_it_is_does_no_harm(tmp_path, start):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, init_lora_weights=start)
    assert not make_plan(recipe_of(tmp_path)).warnings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"r": "8"}, "r is '8', not a whole number above 0"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a number"),
        ({"rank_pattern": {"q": -1}}, "rank_pattern: q is -1, not a whole number above 0"),
        ({"rank_pattern": ["q"]}, "rank_pattern is ['q'], not a mapping"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: '(' is no regular expression"),
        ({"use_dora": "yes"}, "use_dora is 'yes', not true or false"),
    ],
)
def test_a_config_that_is_not_sound(tmp_path, config, message):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, **config)
    assert message in problem_of(tmp_path)


def test_unknown_options_are_a_warning(tmp_path):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD, new_option=3, other=None, also=False)
    (warning,) = make_plan(recipe_of(tmp_path)).warnings
    assert warning.code == "adapter-option"
    assert "passed over: new_option" in warning.message


MISFITS: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "unknown module": (
        linear("model.layers.7.self_attn.q_proj", WIDTH, WIDTH), {},
        "one of its modules is not in the model: model.layers.7.self_attn.q_proj"),
    "misspelled module": (
        linear("model.layers.0.self_attn.q_porj", WIDTH, WIDTH), {},
        f"the model has {Q}.weight"),
    "where it comes from": (
        linear("blocks.0.x", WIDTH, WIDTH), {"base_model_name_or_path": "org/other"},
        "it was trained on org/other"),
    "many unknown modules": (
        {k: v for n in range(5) for k, v in linear(f"x.{n}.y", WIDTH, WIDTH).items()}, {},
        "5 of its modules are not in the model: x.0.y, x.1.y, x.2.y and 2 more"),
    "a head that the model lacks": (
        {"score.weight": some(2, WIDTH, seed=1)}, {"modules_to_save": ["score"]},
        "one of its modules is not in the model: score.weight"),
    "another width": (
        linear(Q, WIDTH, 6), {},
        f"{Q}.lora_A.weight [4, 6] and B [8, 4] do not make {Q}.weight [8, 8]"),
    "another rank": (linear(Q, WIDTH, WIDTH), {"r": 8}, "has rank 4, but the config says 8"),
    "half a pair": (
        {f"{Q}.lora_A.weight": some(4, WIDTH, seed=0)}, {}, f"{Q} lacks its lora_B"),
    "resized vocabulary": (
        {"model.embed_tokens.weight": some(22, WIDTH, seed=0)}, {},
        "model.embed_tokens.weight [22, 8] stands for model.embed_tokens.weight [20, 8] "
        "(the vocabulary was resized: resize the model's first)"),
    "lengths without dora": (
        linear(Q, WIDTH, WIDTH) | magnitude(Q, WIDTH), {}, "has a magnitude, but use_dora is"),
    "dora without lengths": (
        linear(Q, WIDTH, WIDTH), {"use_dora": True}, "has no magnitude, though use_dora is true"),
    "too few lengths": (
        linear(Q, WIDTH, WIDTH) | magnitude(Q, 3), {"use_dora": True}, "is not one number for"),
    "a bias that the model lacks": (
        linear(Q, WIDTH, WIDTH) | {f"{Q}.lora_B.bias": some(WIDTH, seed=1)}, {},
        "has a bias of its own, and the model's has none there"),
    "unknown parts": (
        linear(Q, WIDTH, WIDTH) | {f"{Q}.lora_E": some(4, seed=1)}, {},
        f"not in the model: {Q}.lora_E"),
    "two names of one module": (
        linear(Q, WIDTH, WIDTH) | linear(Q.removeprefix("model."), WIDTH, WIDTH), {},
        f"{Q}.weight is changed by two modules"),
    "an embedding as a matrix": (
        linear("model.embed_tokens", 20, 20), {}, "do not make model.embed_tokens.weight [20, 8]"),
    "whole numbers": (
        {name: (10 * t).to(torch.int8) for name, t in linear(Q, WIDTH, WIDTH).items()}, {},
        "is stored as int8"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MISFITS))
def test_what_does_not_fit_the_model(tmp_path, case):
    tensors, config, message = MISFITS[case]
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", tensors, **config)
    assert message in problem_of(tmp_path)


def test_a_base_of_whole_numbers_cannot_be_adapted(tmp_path):
    write_base(tmp_path / "base", torch.int8)
    write_adapter(tmp_path / "adapter", GOOD)
    assert f"{Q}.weight is stored as int8, to which nothing can be added" in problem_of(tmp_path)


def test_dora_of_a_convolution_is_named(tmp_path):
    write_model(tmp_path / "base", {"conv.weight": some(6, 3, 2, 2, seed=1)}, config={})
    tensors = {
        "conv.lora_A.weight": some(4, 3, 2, 2, seed=2),
        "conv.lora_B.weight": some(6, 4, 1, 1, seed=3),
        "conv.lora_magnitude_vector": some(1, 6, 1, 1, seed=4).abs(),
    }
    write_adapter(tmp_path / "adapter", tensors, use_dora=True)
    assert "has DoRA on conv.weight, a convolution, which is not supported" in problem_of(tmp_path)


# --- files ------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_not_an_adapter(tmp_path):
    write_base(tmp_path / "base")
    assert "does not exist" in problem_of(tmp_path)
    folder = tmp_path / "adapter"
    folder.mkdir()
    assert "is empty" in problem_of(tmp_path)
    (folder / "lora.safetensors").write_bytes(b"x")
    assert "holds no adapter_config.json, only lora.safetensors" in problem_of(tmp_path)
    write_adapter(folder, GOOD)
    (folder / "adapter_model.safetensors").unlink()
    assert "holds no adapter_model.safetensors, only lora.safetensors" in problem_of(tmp_path)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(print))
    assert "adapter_model.bin" in problem_of(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"{")
    assert "is truncated" in problem_of(tmp_path)
    (folder / "adapter_config.json").write_text("{")
    assert "is no sound JSON" in problem_of(tmp_path)
    (folder / "adapter_config.json").write_text("[]")
    assert "is not a JSON object" in problem_of(tmp_path)


def test_a_model_in_the_place_of_an_adapter_and_the_other_way_round(tmp_path):
    write_base(tmp_path / "base")
    write_base(tmp_path / "adapter")
    assert "holds a model and no adapter" in problem_of(tmp_path)
    write_adapter(tmp_path / "lora", GOOD)
    with pytest.raises(CheckpointError, match=r"holds an adapter .* 'model\+lora'"):
        make_plan(recipe_of(tmp_path, "lora"))


def test_problems_of_model_and_adapter_are_told_together(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        make_plan(recipe_of(tmp_path))
    assert len(caught.value.problems) == 2


def test_names_of_the_hub_are_answered(tmp_path):
    write_base(tmp_path / "base")
    with pytest.raises(CheckpointError, match="are not fetched from the Hub yet"):
        make_plan(recipe_of(tmp_path, "base+org/lora"))


def test_the_file_itself_may_be_named(tmp_path):
    write_adapter(tmp_path / "adapter", GOOD)
    found = open_adapter(tmp_path / "adapter/adapter_model.safetensors", "adapter")
    assert len(found.tensors) == 2
    with pytest.raises(CheckpointError, match="is no adapter; name the folder"):
        open_adapter(tmp_path / "adapter/adapter_config.json", "adapter")


# --- names ------------------------------------------------------------------------------------

NAMES = {
    "model.layers.0.q_proj.weight": {
        "model.layers.0.q_proj.weight", "layers.0.q_proj.weight",
        "base_model.layers.0.q_proj.weight", "model.model.layers.0.q_proj.weight",
        "module.model.layers.0.q_proj.weight", "model.language_model.layers.0.q_proj.weight",
        "language_model.model.layers.0.q_proj.weight",
    },
    "visual.blocks.0.qkv.weight": {
        "visual.blocks.0.qkv.weight", "model.visual.blocks.0.qkv.weight",
    },
    "lm_head.weight": {"lm_head.weight", "model.lm_head.weight"},
}  # fmt: skip
LLAVA = {
    "language_model.model.layers.0.q_proj.weight": {
        "model.language_model.layers.0.q_proj.weight", "model.layers.0.q_proj.weight",
        "language_model.model.layers.0.q_proj.weight",
    },
    "vision_tower.vision_model.encoder.layers.0.q_proj.weight": {
        "model.vision_tower.vision_model.encoder.layers.0.q_proj.weight",
        "model.vision_tower.encoder.layers.0.q_proj.weight",
    },
    "language_model.lm_head.weight": {"lm_head.weight"},
}  # fmt: skip
GPT = {"h.0.c_attn.weight": {"transformer.h.0.c_attn.weight", "h.0.c_attn.weight"}}
BERT = {"encoder.layer.0.query.weight": {"bert.encoder.layer.0.query.weight"}}
BERT_MLM = {"bert.encoder.layer.0.query.weight": {"encoder.layer.0.query.weight"}}
VIT = {
    "vit.encoder.layer.0.attention.attention.query.weight": {
        "vit.layers.0.attention.q_proj.weight"
    },
    "vit.encoder.layer.0.attention.output.dense.weight": {"vit.layers.0.attention.o_proj.weight"},
    "vit.encoder.layer.0.intermediate.dense.weight": {"vit.layers.0.mlp.fc1.weight"},
    "vit.encoder.layer.0.output.dense.weight": {"vit.layers.0.mlp.fc2.weight"},
}
CLIP = {
    "text_model.encoder.layers.0.q.weight": {"text_model.encoder.layers.0.q.weight"},
    "vision_model.encoder.layers.0.q.weight": {"vision_model.encoder.layers.0.q.weight"},
}


@pytest.mark.parametrize("table", [NAMES, LLAVA, GPT, BERT, BERT_MLM, VIT, CLIP])
def test_names_that_differ_in_what_wraps_them(table):
    index = NameIndex(table)
    for name, spellings in table.items():
        for spelling in spellings:
            assert index.find(spelling) == name, spelling


def test_a_name_is_never_guessed():
    index = NameIndex([*CLIP, "model.layers.0.q_proj.weight"])
    with pytest.raises(Ambiguous):
        index.find("encoder.layers.0.q.weight")
    assert index.find("layers.1.q_proj.weight") is None
    assert index.find("q_proj.weight") == "model.layers.0.q_proj.weight"
    assert index.find("model.layers.0.k_proj.weight") is None


def test_an_ambiguous_module_is_told(tmp_path):
    adapter = open_adapter(
        write_adapter(tmp_path, linear("encoder.layers.0.q", WIDTH, WIDTH)), "adapter"
    )
    changes, (problem,) = match_adapter(adapter, dict.fromkeys(CLIP, (WIDTH, WIDTH)))
    assert not changes
    assert "encoder.layers.0.q.weight could be any of the model's text_model." in str(problem)


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "base_model.", "", "base_model.model.model."]
)
def test_prefixes(tmp_path, prefix):
    tensors = {name.removeprefix("model."): tensor for name, tensor in GOOD.items()}
    adapter = open_adapter(write_adapter(tmp_path, tensors, prefix=prefix), "adapter")
    changes, problems = match_adapter(adapter, SHAPES)
    assert not problems
    assert list(changes) == [f"{Q}.weight"]


def test_names_with_the_adapter_in_them(tmp_path):
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in GOOD.items()}
    tensors |= {f"{k}.default": v for k, v in embedding("model.embed_tokens", 20, WIDTH).items()}
    adapter = open_adapter(write_adapter(tmp_path, tensors), "adapter")
    changes, problems = match_adapter(adapter, SHAPES)
    assert not problems
    assert set(changes) == {f"{Q}.weight", "model.embed_tokens.weight"}
    second = {name.replace("default", "other"): tensor.clone() for name, tensor in tensors.items()}
    adapter = open_adapter(write_adapter(tmp_path, tensors | second), "adapter")
    _, (problem,) = match_adapter(adapter, SHAPES)
    assert "are of two adapters" in problem.message


# --- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "base+adapter", "./base+adapter/", " base + adapter ", {"model": "base", "lora": "adapter"},
        {"model": {"path": "base"}, "lora": {"path": "adapter"}},
        {"model": {"merge_method": "passthrough", "models": ["base"]}, "lora": "adapter"},
    ],
)  # fmt: skip
def test_ways_to_write_an_adapter(tmp_path, model):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", GOOD)
    plan = make_plan(recipe_of(tmp_path, model))
    tensor = plan.tensor(f"{Q}.weight")
    assert tensor is not None
    assert len(tensor.inputs) == 3
    (found,) = plan.models
    assert "1 tensor adapted by adapter" in found.made_by


def test_several_adapters_by_nesting(tmp_path):
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "first", GOOD)
    write_adapter(tmp_path / "second", linear(Q, WIDTH, WIDTH, seed=8))
    inner = {"merge_method": "passthrough", "models": ["base+first"]}
    plan = make_plan(recipe_of(tmp_path, {"model": inner, "lora": "second"}))
    tensor = plan.tensor(f"{Q}.weight")
    assert tensor is not None
    assert len(tensor.inputs) == 5


def test_revisions_are_a_part_of_the_name(tmp_path):
    model = {"path": "org/m", "revision": "v1"}
    with pytest.raises(MergeconfError) as caught:
        make_plan(recipe_of(tmp_path, {"model": model, "lora": {**model, "path": "org/l"}}))
    assert [p.where for p in caught.value.problems] == ["org/m@v1", "org/l@v1"]
