"""Planning: what makes each output tensor, what is refused, and that nothing is read or lost."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.checkpoint import Checkpoint, ReadFiles, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.errors import CheckpointError, ExecutionError, MergeconfError, PlanError, RecipeError
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from mergeconf.plan import make
from support.models import (
    CAUSAL,
    KINDS,
    llama_like,
    load_exactly,
    logits,
    made,
    new_model,
    read_model,
    write_model,
)

NAMES = list(llama_like())


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def run(folder: Path, text: str, out: str = "out") -> dict[str, torch.Tensor]:
    """Run a recipe that lies in a folder; return what it has written."""
    merge(recipe_file(folder, text), folder / out, threads=1)
    return read_model(folder / out)


def constants(folder: Path, *values: float, **options) -> None:
    """Write models a, b, c, ... of which every element is the same number."""
    for name, value in zip("abcdef", values, strict=False):
        tensors = {key: torch.full_like(t, value) for key, t in llama_like(**options).items()}
        write_model(folder / name, tensors)


def refusal(path: Path) -> MergeconfError:
    with pytest.raises(MergeconfError) as caught:
        make_plan(load_recipe(path))
    return caught.value


# --- what makes each tensor -------------------------------------------------------------------


def test_every_tensor_has_its_inputs_format_rule_and_shape(tmp_path):
    for seed, name in enumerate("xab"):
        write_model(tmp_path / name, llama_like(seed, dtype=torch.bfloat16))
    plan = make_plan(load_recipe(recipe_file(tmp_path, """
merge_method: ties
base_model: x
models: [a, b]
rules:
  - {match: "*.o_proj.*", take: b}
  - {match: model.norm.weight, drop: true}
  - {layers: -1, merge_method: linear, out_dtype: null}
""".replace(", out_dtype: null", ""))))  # fmt: skip
    stored = {name: read_model(tmp_path / name) for name in "xab"}
    assert {tensor.name for tensor in plan.tensors} == set(NAMES) - {"model.norm.weight"}
    assert [item.name for item in plan.dropped] == ["model.norm.weight"]
    for tensor in plan.tensors:
        if ".o_proj." in tensor.name:
            expected = (0, ("b",), None)
        elif ".layers.2." in tensor.name:
            expected = (2, ("a", "b"), "linear")
        else:
            expected = (None, ("x", "a", "b"), "ties")
        decision = tensor.decision
        assert (decision.rule, tensor.labels, decision.method) == expected
        assert tensor.shape == tuple(stored["x"][tensor.name].shape)
        assert tensor.dtype is DType.bfloat16
        for label, source in zip(tensor.labels, tensor.inputs, strict=True):
            assert source.name == tensor.name
            assert source.file == tmp_path / label / "model.safetensors"
    assert plan.rule_counts == (3, 1, 4)


WEIGHTS = [
    # recipe's parameters, model's, rule's -> weight of a q_proj in layer 0, of the norm
    ("0.5", None, None, 0.5, 0.5),
    ("0.5", "0.25", None, 0.25, 0.25),
    ("0.5", "0.25", "0.125", 0.125, 0.25),
    ("0.5", None, "0.125", 0.125, 0.5),
    ("0.5", "[{filter: q_proj, value: 0.25}]", None, 0.25, 0.5),
    ("[{filter: norm, value: 2}, {value: 4}]", "[{filter: q_proj, value: 0.25}]", None, 0.25, 2),
    ("[{match: '*q_proj*', value: 2}, {layers: 0, value: 8}, {value: 4}]", None, None, 2, 4),
    ("[{layers: 0, value: 8}, {match: '*q_proj*', value: 2}, {value: 4}]", None, None, 8, 4),
    ("3", None, "[{layers: 1-2, value: 5}]", 3, 3),
    ("3", None, "[{layers: 1-2, value: 5}, {value: 7}]", 7, 3),
    (None, "0.25", "[{filter: q_proj, value: 2}]", 2, 0.25),
]


@pytest.mark.parametrize(("of_recipe", "of_model", "of_rule", "inner", "outer"), WEIGHTS)
def test_a_rule_is_stronger_than_a_model_and_a_model_than_the_recipe(
    tmp_path, of_recipe, of_model, of_rule, inner, outer
):
    constants(tmp_path, 0.0, 1.0)
    text = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - model: b\n"
    if of_model:
        text += f"    parameters: {{weight: {of_model}}}\n"
    text += "parameters:\n  normalize: false\n"
    if of_recipe:
        text += f"  weight: {of_recipe}\n"
    if of_rule:
        text += f"rules:\n  - match: '*self_attn*'\n    parameters: {{weight: {of_rule}}}\n"
    result = run(tmp_path, text)
    assert result["model.layers.0.self_attn.q_proj.weight"].unique().tolist() == [inner]
    assert result["model.norm.weight"].unique().tolist() == [outer]


def test_a_gradient_runs_over_the_layers_of_each_stack(tmp_path):
    names = [f"{stack}.{layer}.w" for stack, count in (("enc", 5), ("dec", 3), ("one", 1))
             for layer in range(count)] + ["tok.w"]  # fmt: skip
    for label, value in (("a", 0.0), ("b", 1.0)):
        write_model(tmp_path / label, {name: torch.full((3,), value) for name in names})
    result = run(tmp_path, """
merge_method: linear
models:
  - {model: a, parameters: {weight: 0}}
  - {model: b, parameters: {weight: [1, 3, 4]}}
parameters: {normalize: false}
""")  # fmt: skip
    got = {name: tensor.unique().tolist() for name, tensor in result.items()}
    # by hand: the piecewise line through 1, 3, 4 at depth layer / (layers - 1)
    assert [got[f"enc.{layer}.w"] for layer in range(5)] == [[1], [2], [3], [3.5], [4]]
    assert [got[f"dec.{layer}.w"] for layer in range(3)] == [[1], [3], [4]]
    assert got["one.0.w"] == [4]  # as mergekit: the only layer of a stack is its last
    assert got["tok.w"] == [1]  # as mergekit: what is outside the layers is at depth 0


def test_negative_layers_and_ranges_are_those_of_each_stack(tmp_path):
    names = [f"{stack}.{layer}.w" for stack, count in (("enc", 4), ("dec", 2))
             for layer in range(count)]  # fmt: skip
    for label, value in (("a", 0.0), ("b", 1.0)):
        write_model(tmp_path / label, {name: torch.full((3,), value) for name in names})
    result = run(tmp_path, """
take: a
models: [a, b]
rules:
  - {layers: [-1, 0], take: b}
""")  # fmt: skip
    assert {name for name, tensor in result.items() if tensor.all()} == {
        "enc.0.w", "enc.3.w", "dec.0.w", "dec.1.w",
    }  # fmt: skip


def test_formats_follow_out_dtype_then_dtype_then_the_base(tmp_path):
    write_model(tmp_path / "x", llama_like(0, dtype=torch.float16))
    mixed = llama_like(1, dtype=torch.float32)
    mixed["model.norm.weight"] = mixed["model.norm.weight"].double()
    write_model(tmp_path / "a", mixed)
    write_model(tmp_path / "b", llama_like(2, dtype=torch.bfloat16))

    def formats(more: str, base: str = "base_model: x\n") -> set[tuple[str, torch.dtype]]:
        method = "task_arithmetic" if base else "linear"
        text = f"merge_method: {method}\n{base}models: [a, b]\n{more}"
        tensors = run(tmp_path, text, f"out-{len(list(tmp_path.iterdir()))}")
        return {("norm" if name == "model.norm.weight" else "", tensor.dtype)
                for name, tensor in tensors.items()}  # fmt: skip

    assert formats("") == {("norm", torch.float16), ("", torch.float16)}
    assert formats("", "") == {("norm", torch.float64), ("", torch.float32)}
    assert {d for _, d in formats("dtype: bfloat16\n")} == {torch.bfloat16}
    assert {d for _, d in formats("out_dtype: float64\n")} == {torch.float64}
    assert {d for _, d in formats("dtype: float32\nout_dtype: float16\n")} == {torch.float16}


def test_arithmetic_is_in_float32_whatever_dtype_says(tmp_path):
    # 1 + 2^-9 is no bfloat16; the mean of 1 + 2^-7 and 1 - 2^-8 is 1 + 2^-9 exactly
    write_model(tmp_path / "a", {"w": torch.full((3,), 1 + 2.0**-7, dtype=torch.bfloat16)})
    write_model(tmp_path / "b", {"w": torch.full((3,), 1 - 2.0**-8, dtype=torch.bfloat16)})
    result = run(
        tmp_path,
        "merge_method: linear\nmodels: [a, b]\ndtype: bfloat16\nout_dtype: float32\n",
    )
    assert result["w"].tolist() == [1 + 2.0**-9] * 3


def test_take_copies_bits_and_drop_leaves_out(tmp_path):
    strange = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 3.0])
    for seed, name in enumerate("xab"):
        write_model(tmp_path / name, {**llama_like(seed), "odd": strange * (seed + 1)})
    stored = {name: read_model(tmp_path / name) for name in "xab"}
    result = run(tmp_path, """
merge_method: ties
base_model: x
models: [a, b]
rules:
  - {match: odd, take: b}
  - {match: lm_head.weight, take: base_model}
  - {match: "*layernorm*", drop: true}
""")  # fmt: skip
    assert torch.equal(result["odd"].view(torch.int32), stored["b"]["odd"].view(torch.int32))
    assert torch.equal(result["lm_head.weight"], stored["x"]["lm_head.weight"])
    assert set(result) == {*(name for name in NAMES if "layernorm" not in name), "odd"}


def test_the_donor_s_license_goes_with_its_weights(tmp_path):
    constants(tmp_path, 1, 2)
    (tmp_path / "a" / "LICENSE").write_text("terms of a")
    (tmp_path / "b" / "LICENSE").write_text("terms of b")
    run(tmp_path, "merge_method: linear\nmodels: [a, b]\n")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms of a"


def test_a_partial_merge_leaves_the_rest_as_it_is_in_the_base(tmp_path):
    for seed, name in enumerate("xab"):
        write_model(tmp_path / name, llama_like(seed))
    stored = {name: read_model(tmp_path / name) for name in "xab"}
    result = run(tmp_path, """
take: base_model
base_model: x
models: [a, b]
rules:
  - {match: "*.mlp.*", layers: 1, merge_method: linear}
""")  # fmt: skip
    for name in NAMES:
        wanted = stored["x"][name]
        if name.startswith("model.layers.1.mlp."):
            wanted = (stored["a"][name] + stored["b"][name]) / 2  # exact: see llama_like
        assert torch.equal(result[name], wanted), name


def test_rules_with_another_method_are_that_method_on_these_tensors_alone(tmp_path):
    for seed, name in enumerate("xab"):
        write_model(tmp_path / name, llama_like(seed))
    stored = {name: read_model(tmp_path / name) for name in "xab"}
    result = run(tmp_path, """
merge_method: dare_ties
base_model: x
models: [{model: a, parameters: {weight: 0.75}}, b]
parameters: {density: 0.5, weight: 0.25}
seed: 7
rules:
  - {match: "*.q_proj.*", merge_method: task_arithmetic}
  - {match: "*.o_proj.*", parameters: {density: 0.9}}
  - {match: "*.up_proj.*", merge_method: ties, parameters: {density: 0.3}}
""")  # fmt: skip
    methods = all_methods()
    for name in NAMES:
        method, parameters = "dare_ties", {"density": (0.5, 0.5)}
        if ".q_proj." in name:
            method, parameters = "task_arithmetic", {}
        elif ".o_proj." in name:
            parameters = {"density": (0.9, 0.9)}
        elif ".up_proj." in name:
            method, parameters = "ties", {"density": (0.3, 0.3)}
        parameters["weight"] = (0.75, 0.25)
        models = [stored["a"][name], stored["b"][name]]
        wanted = evaluate(methods[method], stored["x"][name], models, parameters, seed=7, name=name)
        assert torch.equal(result[name], wanted), name


# --- whole numbers and what cannot be merged --------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.int8])
def test_whole_numbers_are_copied_where_all_agree(tmp_path, dtype):
    counter = torch.arange(70_001).to(dtype)
    for seed, name in enumerate("xab"):
        write_model(tmp_path / name, {**llama_like(seed), "position_ids": counter})
    for method in ("ties", "dare_linear", "parameter_selection"):
        text = f"merge_method: {method}\nbase_model: x\nmodels: [a, b]\nout_dtype: bfloat16\n"
        result = run(tmp_path, text, method)
        assert result["position_ids"].dtype == dtype
        assert torch.equal(result["position_ids"], counter)


@pytest.mark.parametrize("element", [0, 70_000])
def test_whole_numbers_that_differ_end_the_run_and_leave_nothing(tmp_path, element):
    counter = torch.arange(70_001)
    for seed, name in enumerate("xab"):
        own = counter.clone()
        own[element] += seed == 2
        write_model(tmp_path / name, {**llama_like(seed), "position_ids": own})
    text = "merge_method: ties\nbase_model: x\nmodels: [a, b]\n"
    with pytest.raises(ExecutionError, match=f"position_ids.*int64.*element {element}\\b"):
        run(tmp_path, text)
    assert not (tmp_path / "out").exists()
    result = run(tmp_path, text + "rules: [{match: position_ids, take: b}]\n")
    assert result["position_ids"][element] == element + 1


def test_eight_bit_floats_are_refused_by_name_unless_they_are_copied(tmp_path):
    for seed, name in enumerate("ab"):
        packed = torch.ones(4, 4).to(torch.float8_e4m3fn)
        write_model(tmp_path / name, {**llama_like(seed), "model.layers.0.packed": packed})
    text = "merge_method: linear\nmodels: [a, b]\n"
    error = refusal(recipe_file(tmp_path, text))
    assert isinstance(error, PlanError)
    assert len(error.problems) == 1
    for words in ("model.layers.0.packed", "a float8_e4m3fn", "b float8_e4m3fn", "bfloat16"):
        assert words in str(error)
    result = run(tmp_path, text + "rules: [{match: '*packed', take: a}]\n")
    assert result["model.layers.0.packed"].dtype == torch.float8_e4m3fn


def test_weights_that_the_config_calls_quantized_are_refused(tmp_path):
    for seed, name in enumerate("ab"):
        config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
        tensors = {name: torch.ones(4, 4, dtype=torch.int8) for name in ("p.qweight", "q.weight")}
        write_model(tmp_path / name, {**llama_like(seed), **tensors}, config=config)
    error = refusal(recipe_file(tmp_path, "merge_method: linear\nmodels: [a, b]\n"))
    assert isinstance(error, CheckpointError)
    assert [problem.where for problem in error.problems] == ["a", "b"]
    for problem in error.problems:
        assert "quantized with GPTQ" in problem.message


def _odd_models(folder: Path, change) -> Path:
    for seed, name in enumerate("xab"):
        tensors = llama_like(seed)
        if name == "b":
            tensors = change(tensors)
        write_model(folder / name, tensors)
    text = "merge_method: ties\nbase_model: x\nmodels:\n  - a\n  - b\n"
    return recipe_file(folder, text)


def _without(*names: str):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(names)}


def _with(name: str, tensor: torch.Tensor):
    return lambda tensors: {**tensors, name: tensor}


MISFITS = {
    "fewer layers": (
        lambda _: llama_like(9, layers=2),
        ["model.layers: the models have different numbers of layers: x 3, a 3, b 2"],
    ),
    "more layers": (
        lambda _: llama_like(9, layers=5),
        ["model.layers: the models have different numbers of layers: x 3, a 3, b 5"],
    ),
    "another width": (
        lambda _: llama_like(9, rows=8),
        [".weight: ", "x [10, 6], a [10, 6], b [10, 8]", "one architecture"],
    ),
    "another vocabulary": (
        lambda _: llama_like(9, vocab=12),
        [".weight: ", "x [10, 6], a [10, 6], b [12, 6]", "vocabularies",
         "2 such tensors"],
    ),
    "a tensor less": (
        _without("model.norm"), ["b: ", "model.norm.weight", "which x, a have", "drop: true"],
    ),
    "several less": (
        _without("model.norm", "lm_head", "model.layers.1.mlp"),
        ["b: ", "4 tensors", "lm_head.weight", "which x, a have"],
    ),
    "a tensor more": (
        _with("extra.weight", torch.zeros(3)), ["x, a: ", "extra.weight", "which b has, is not"],
    ),
    "one shape": (
        _with("model.layers.1.mlp.up_proj.weight", torch.zeros(6, 5)),
        ["model.layers.1.mlp.up_proj.weight", "x [6, 6], a [6, 6], b [6, 5]"],
    ),
    "a whole number for a weight": (
        _with("model.norm.weight", torch.zeros(6, dtype=torch.int64)),
        ["model.norm.weight", "x float32, a float32, b int64", "whole numbers"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_models_that_do_not_fit_are_one_clear_problem(tmp_path, case):
    change, words = MISFITS[case]
    path = _odd_models(tmp_path, change)
    error = refusal(path)
    assert isinstance(error, PlanError)
    problems = error.problems
    if case == "another width":  # each different set of shapes is its own
        assert {problem.where.rpartition(".")[2] for problem in problems} == {"weight"}
    else:
        assert len(problems) == 1, str(error)
    for word in words:
        assert word in str(error)
    assert problems[0].location is not None
    assert problems[0].location.file == str(path)


def test_all_that_does_not_fit_is_said_at_once_and_in_few_words(tmp_path):
    def change(tensors):
        tensors = _without("model.norm")(tensors)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(6, 5)
        tensors["more"] = torch.zeros(2)
        return tensors

    path = _odd_models(tmp_path, change)
    path.write_text(path.read_text() + "rules:\n  - {match: nothing.at.all, drop: true}\n")
    problems = refusal(path).problems
    assert len(problems) == 4
    assert [p for p in problems if "nothing.at.all" in p.message and p.location.line == 7]


def test_missing_and_damaged_models_are_all_named(tmp_path):
    write_model(tmp_path / "a", llama_like())
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.safetensors").write_bytes(b"\x00" * 6)
    path = recipe_file(tmp_path, "merge_method: linear\nmodels:\n  - a\n  - b\n  - c\n  - d\n")
    error = refusal(path)
    assert isinstance(error, CheckpointError)
    assert [problem.location.line for problem in error.problems] == [4, 5, 6]


# --- nothing is lost --------------------------------------------------------------------------

POOL = (
    "model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.layers.1.b",
    "norm.w", "lm_head.weight", "decoder.weight", "position_ids",
)  # fmt: skip
SHAPES = ((4, 3), (4, 3), (4, 3), (3,), (5, 3))
RULES = (
    {"match": "*", "take": "base_model"}, {"match": "*.w", "take": "b"},
    {"layers": 1, "drop": True}, {"match": "lm_head*", "drop": True},
    {"match": "*", "merge_method": "linear"}, {"match": "*embed*", "merge_method": "ties"},
    {"match": "position_ids", "take": "a"},
)  # fmt: skip


def checkpoint(label: str, tensors: dict, tied: bool | None) -> Checkpoint:
    config = None if tied is None else {"tie_word_embeddings": tied}
    stored = {
        name: StoredTensor(name, dtype, shape, Path(label), 0, 0)
        for name, (dtype, shape) in tensors.items()
    }
    return Checkpoint(label, Path(label), stored, {}, config, (), (), ())


@st.composite
def situations(draw: st.DrawFn):
    """Models that mostly fit, and a recipe for them."""
    common = {
        name: (draw(st.sampled_from((DType.float32, DType.float32, DType.int64))),
               draw(st.sampled_from(SHAPES)))
        for name in POOL if draw(st.integers(0, 4))
    }  # fmt: skip
    models = {}
    for label in "xab":
        tensors = dict(common)
        for name in draw(st.sets(st.sampled_from(POOL), max_size=draw(st.sampled_from((0, 0, 1))))):
            if draw(st.booleans()):
                tensors.pop(name, None)
            else:
                tensors[name] = (DType.float32, draw(st.sampled_from(SHAPES)))
        models[label] = checkpoint(label, tensors, draw(st.sampled_from((True, False, None))))
    recipe = {"base_model": "x", "models": ["a", "b"]}
    if draw(st.booleans()):
        recipe["merge_method"] = draw(st.sampled_from(("ties", "linear", "slerp", "model_stock")))
        if recipe["merge_method"] == "slerp":
            recipe["models"], recipe["parameters"] = ["a"], {"t": 0.5}
            del models["b"]
    else:
        recipe["take"] = "base_model"
    rules = draw(st.lists(st.sampled_from(RULES), max_size=3))
    if "b" in models:
        recipe["rules"] = rules
    return models, recipe


@settings(max_examples=max(200, settings().max_examples))
@given(situations())
def test_every_tensor_is_used_or_dropped_by_a_rule_or_the_plan_is_refused(situation):
    models, data = situation
    try:
        recipe = load_recipe(data)
        plan = make_plan(recipe, open_model=lambda path, label: models[label])
    except (PlanError, RecipeError) as error:
        assert error.problems
        return
    made_of = {tensor.name: tensor for tensor in plan.tensors}
    dropped = {item.name: item for item in plan.dropped}
    assert not made_of.keys() & dropped.keys()
    for label, model in models.items():
        for name, stored in model.tensors.items():
            if name in made_of:
                tensor = made_of[name]
                decision = tensor.decision
                unused = decision.take is not None or (label == "x" and decision.base is None)
                assert label in tensor.labels or unused, (name, label)
                if label in tensor.labels:
                    assert tensor.inputs[tensor.labels.index(label)].shape == tensor.shape
            else:
                assert name in dropped, (name, label)
                rule = dropped[name].reason
                if rule.startswith("rules."):
                    assert recipe.rules[int(rule.removeprefix("rules."))].drop
                else:  # a second copy of a tied weight
                    embedding = model.tensors.get("model.embed_tokens.weight")
                    assert model.config == {"tie_word_embeddings": True}
                    assert embedding is not None, "tied to a tensor that this model lacks"
                    assert (stored.shape, stored.dtype) == (embedding.shape, embedding.dtype)
    for tensor in plan.tensors:
        used = set(tensor.labels)
        for label in used:
            own = models[label].tensors
            lent = tensor.name in ("lm_head.weight", "decoder.weight")
            assert tensor.name in own or (lent and models[label].config)


# --- tied weights -----------------------------------------------------------------------------

STORED = ("once", "twice", "untied")


def tied_model(folder: Path, how: str, variant: int):
    """Write a Llama whose head is tied (saved once, or a second time) or not; return the model."""
    model = new_model("llama" if how == "untied" else "llama-tied", variant)
    model.save_pretrained(folder)
    tensors = read_model(folder)
    assert ("lm_head.weight" in tensors) == (how == "untied")
    if how == "twice":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        write_model(folder, tensors)
    return model


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STORED, STORED)))
def test_tied_weights_in_all_combinations_load_and_compute_as_they_should(tmp_path, first, second):
    models = [tied_model(tmp_path / n, how, i) for i, (n, how) in
              enumerate((("a", first), ("b", second)))]  # fmt: skip
    result = run(tmp_path, "merge_method: linear\nmodels: [a, b]\n")
    tied = "untied" not in (first, second)
    assert ("lm_head.weight" not in result) == tied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied

    wanted = new_model("llama-tied" if tied else "llama")
    parts = [dict(model.state_dict()) for model in models]
    wanted.load_state_dict({name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})
    loaded = load_exactly(tmp_path / "out")
    for name, tensor in wanted.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, atol=1e-7), name
    assert torch.allclose(logits(loaded), logits(wanted), atol=1e-5)


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("method", ["parameter_selection", "dare_linear"])
def test_random_methods_draw_a_tied_weight_once(tmp_path, how, method):
    for variant, name in enumerate("xab"):
        tied_model(tmp_path / name, how, variant)
    run(tmp_path, f"merge_method: {method}\nbase_model: x\nmodels: [a, b]\nseed: 3\n"
        + ("parameters: {density: 0.5}\n" if method == "dare_linear" else ""))  # fmt: skip
    loaded = load_exactly(tmp_path / "out")
    embedding, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert torch.equal(embedding.weight, head.weight) == (how != "untied")


def test_a_head_that_is_dropped_leaves_the_model_tied(tmp_path):
    tied_model(tmp_path / "a", "once", 0)
    tied_model(tmp_path / "b", "untied", 1)
    run(tmp_path, "merge_method: linear\nmodels: [a, b]\n"
        "rules: [{match: lm_head.weight, drop: true}]\n")  # fmt: skip
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True
    load_exactly(tmp_path / "out")


def test_what_is_only_named_like_a_head_is_no_copy_of_the_embedding(tmp_path):
    for seed, name in enumerate("ab"):
        tensors = llama_like(seed, head=False)
        tensors["vision.decoder.weight"] = torch.full((3, 2), float(seed))
        write_model(tmp_path / name, tensors, config={"tie_word_embeddings": True})
    result = run(tmp_path, "merge_method: linear\nmodels: [a, b]\n")
    assert result["vision.decoder.weight"].unique().tolist() == [0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_architecture_merge_and_load(tmp_path, kind):
    text = f"merge_method: linear\nmodels:\n  - {made(kind, 1)}\n  - {made(kind, 2)}\n"
    result = run(tmp_path, text)
    stored = [read_model(made(kind, variant)) for variant in (1, 2)]
    assert result.keys() == stored[0].keys()
    for name, tensor in result.items():
        assert torch.allclose(tensor, (stored[0][name] + stored[1][name]) / 2, atol=1e-7)
    loaded = load_exactly(tmp_path / "out")
    wanted = new_model(kind)
    states = [new_model(kind, variant).state_dict() for variant in (1, 2)]
    wanted.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    assert torch.allclose(logits(loaded), logits(wanted), atol=1e-5)


def test_the_kinds_of_models_that_were_tested():
    assert len(KINDS) == 8
    assert set(CAUSAL) < set(KINDS)


# --- headers only -----------------------------------------------------------------------------


def test_planning_survives_a_source_whose_weights_cannot_be_read(tmp_path, monkeypatch, capsys):
    from mergeconf.cli.check import command as check
    from mergeconf.cli.explain import command as explain
    from mergeconf.cli.plan import command as plan

    for seed, name in enumerate("xab"):
        tensors = {**llama_like(seed), "position_ids": torch.arange(9)}
        write_model(tmp_path / name, tensors, shards=2)
    path = recipe_file(tmp_path, "merge_method: ties\nbase_model: x\nmodels: [a, b]\n")

    def broken(*args, **options):
        raise OSError("a weight was read")

    monkeypatch.setattr(ReadFiles, "read_into", broken)
    monkeypatch.setattr(ReadFiles, "advise", broken)
    real = os.pread

    def headers_only(descriptor, length, offset):
        end = 8 + int.from_bytes(real(descriptor, 8, 0), "little")
        return broken() if offset + length > end else real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", headers_only)
    for name in ("preadv", "posix_fadvise"):
        monkeypatch.setattr(os, name, broken)
    check(str(path))
    plan(str(path), as_json=True)
    plan(str(path), memory="64MiB")
    for name in (*NAMES, "position_ids"):
        explain(str(path), name)
    assert "position_ids: [9] int64" in capsys.readouterr().out
    with pytest.raises((OSError, MergeconfError)):
        merge(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gradient", [False, True])
def test_the_work_of_planning_does_not_grow_with_the_number_of_tensors(monkeypatch, gradient):
    layers, experts = 50, 400
    tensors = {
        f"model.layers.{layer}.experts.{expert}.w": (DType.bfloat16, (8, 4))
        for layer in range(layers)
        for expert in range(experts)
    }
    assert len(tensors) == 20_000
    models = {label: checkpoint(label, tensors, None) for label in "xab"}
    traced = []
    real = make.trace

    def counted(method, *args):
        traced.append(method.name)
        return real(method, *args)

    monkeypatch.setattr(make, "trace", counted)
    opened = []

    def open_model(path, label):
        opened.append(label)
        return models[label]

    density = "[0.2, 0.8]" if gradient else "0.5"
    recipe = load_recipe(
        f"merge_method: ties\nbase_model: x\nmodels: [a, b]\nparameters: {{density: {density}}}\n"
        "rules: [{match: '*.experts.1??.w', merge_method: linear}]\n"
    )
    plan = make_plan(recipe, open_model=open_model)
    assert len(plan.tensors) == 20_000
    assert opened == ["x", "a", "b"]
    assert traced.count("linear") == 1
    assert traced.count("ties") == (layers if gradient else 1)
    assert len({id(tensor.expression) for tensor in plan.tensors}) == len(traced)
