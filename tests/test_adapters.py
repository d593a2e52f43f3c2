"""A model with an adapter is the model that merging the adapter gives.

The oracle computes in float64; `tests/parity` compares with peft itself and with mergekit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeconf.api import fingerprint, load_recipe, make_plan, merge, run_plan
from mergeconf.checkpoint import ReadFiles
from mergeconf.errors import ExecutionError, PlanError
from support.adapters import (
    PREFIX,
    assert_close,
    convolution,
    embedding,
    linear,
    magnitude,
    merged,
    some,
    write_adapter,
)
from support.command import call
from support.harness import assert_same_bits
from support.models import read_model, write_model
from support.vocabularies import OTHER_TEXT, make_tokenizer, save_tokenizer, write_llama

WIDTH, INNER, VOCABULARY = 8, 12, 20
TENSORS = {
    "model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.self_attn.q_proj.bias": (WIDTH,),
    "model.layers.0.mlp.up_proj.weight": (INNER, WIDTH),
    "model.layers.1.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "model.layers.1.self_attn.q_proj.bias": (WIDTH,),
    "model.layers.1.mlp.up_proj.weight": (INNER, WIDTH),
    "model.patch.weight": (6, 3, 2, 2), "model.point.weight": (6, 5, 1, 1),
    "model.wave.weight": (6, 5, 3), "lm_head.weight": (VOCABULARY, WIDTH),
}  # fmt: skip
Q0, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"
GPT = {
    "wte.weight": (VOCABULARY, WIDTH), "h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
    "h.0.attn.c_attn.bias": (3 * WIDTH,), "h.0.attn.c_proj.weight": (WIDTH, WIDTH),
    "h.0.attn.c_proj.bias": (WIDTH,), "h.0.plain.weight": (WIDTH, WIDTH),
}  # fmt: skip


def model(
    folder: Path, shapes: dict[str, tuple[int, ...]] = TENSORS, dtype: torch.dtype = torch.bfloat16,
    seed: int = 100, **config: Any,
) -> dict[str, torch.Tensor]:  # fmt: skip
    tensors = {
        name: some(*shape, seed=seed + index).to(dtype)
        for index, (name, shape) in enumerate(shapes.items())
    }
    write_model(folder, tensors, config={"model_type": "none", **config})
    return tensors


def taken(folder: Path, name: str = "base+adapter", **more: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a model with its adapter, as a merge of nothing else."""
    recipe = folder / "passthrough.yaml"
    recipe.write_text(json.dumps({"merge_method": "passthrough", "models": [name], **more}))
    merge(recipe, folder / "taken", force=True)
    return read_model(folder / "taken")


# --- values -----------------------------------------------------------------------------------

CASES: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
    "linear": (linear(Q0, WIDTH, WIDTH) | linear(UP1, INNER, WIDTH, seed=5), {}),
    "embedding": (embedding(EMBED, VOCABULARY, WIDTH), {}),
    "embedding saved too": (
        embedding(EMBED, VOCABULARY, WIDTH)
        | {f"{EMBED}.base_layer.weight": some(VOCABULARY, WIDTH, seed=3)}, {}),
    "head": (linear(HEAD, VOCABULARY, WIDTH), {}),
    "dora": (linear(UP1, INNER, WIDTH) | magnitude(UP1, INNER), {"use_dora": True}),
    "dora embedding": (
        embedding(EMBED, VOCABULARY, WIDTH) | magnitude(EMBED, WIDTH), {"use_dora": True}),
    "convolution": (convolution("model.patch", (6, 3, 2, 2)), {}),
    "convolution 1x1": (convolution("model.point", (6, 5, 1, 1)), {}),
    "convolution in one dimension": (convolution("model.wave", (6, 5, 3)), {}),
    "modules to save": (
        linear(Q0, WIDTH, WIDTH)
        | {"lm_head.weight": some(VOCABULARY, WIDTH, seed=3),
           "model.norm.weight": some(WIDTH, seed=4).to(torch.bfloat16)},
        {"modules_to_save": ["lm_head", "norm"]}),
    "biases": (
        linear(Q0, WIDTH, WIDTH)
        | {f"{Q0}.base_layer.bias": some(WIDTH, seed=3),
           "model.layers.1.self_attn.q_proj.bias": some(WIDTH, seed=4)}, {"bias": "all"}),
    "a bias beside the product": (
        linear(Q0, WIDTH, WIDTH) | {f"{Q0}.lora_B.bias": some(WIDTH, seed=3)},
        {"lora_bias": True}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_values(tmp_path, case, dtype):
    tensors, config = CASES[case]
    base = model(tmp_path / "base", dtype=dtype)
    write_adapter(tmp_path / "adapter", tensors, **config)
    got, want = taken(tmp_path), merged(base, tensors)
    assert got.keys() == base.keys()
    changed = set()
    for name, tensor in got.items():
        assert tensor.dtype == base[name].dtype
        assert_close(tensor, want[name])
        if not torch.equal(tensor, base[name]):
            changed.add(name)
        else:
            assert torch.equal(want[name], base[name].double())
    assert changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_formats_of_the_adapter(tmp_path, dtype):
    base = model(tmp_path / "base", dtype=torch.float32)
    tensors = {name: t.to(dtype) for name, t in linear(UP1, INNER, WIDTH).items()}
    write_adapter(tmp_path / "adapter", tensors)
    assert_close(taken(tmp_path)[f"{UP1}.weight"], merged(base, tensors)[f"{UP1}.weight"])


def test_pickled_weights(tmp_path):
    base = model(tmp_path / "base", dtype=torch.float32)
    tensors = linear(UP1, INNER, WIDTH)
    folder = write_adapter(tmp_path / "adapter", {})
    (folder / "adapter_model.safetensors").unlink()
    pickled = {PREFIX + name: tensor for name, tensor in tensors.items()}
    torch.save(pickled, folder / "adapter_model.bin")
    assert_close(taken(tmp_path)[f"{UP1}.weight"], merged(base, tensors)[f"{UP1}.weight"])


@pytest.mark.parametrize(
    ("config", "scale_of_q", "scale_of_up"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0, 2.0),
        ({"r": 4, "lora_alpha": 6.5}, 1.625, 1.625),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0, 4.0),
        ({"r": 9, "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 4}}, 2.0, 2.0),
        ({"alpha_pattern": {"q_proj": 1}}, 0.25, 2.0),
        ({"alpha_pattern": {"proj": 1}}, 2.0, 2.0),  # whole parts of a name only
        ({"alpha_pattern": {"model.layers.0.self_attn.q_proj": 1, "q_proj": 3}}, 0.25, 2.0),
        ({"alpha_pattern": {"q_proj": 3, "model.layers.0.self_attn.q_proj": 1}}, 0.75, 2.0),
        ({"alpha_pattern": {".*_proj": 1}}, 0.25, 0.25),
        ({"alpha_pattern": {r"layers\.\d\.mlp.*": 1}}, 2.0, 0.25),
        ({"alpha_pattern": {"^model.layers.1.*": 1}}, 2.0, 0.25),
        ({"r": 16, "lora_alpha": 2, "use_rslora": True, "rank_pattern": {"q_proj": 4,
          "up_proj": 4}, "alpha_pattern": {"q_proj": 1}}, 0.5, 1.0),
    ],
)  # fmt: skip
def test_scales(tmp_path, config, scale_of_q, scale_of_up):
    base = model(tmp_path / "base", dtype=torch.float32)
    tensors = linear(Q0, WIDTH, WIDTH) | linear(UP1, INNER, WIDTH, seed=5)
    write_adapter(tmp_path / "adapter", tensors, **config)
    got = taken(tmp_path)
    want = merged(base, tensors, scales={Q0: scale_of_q, UP1: scale_of_up})
    for name in (f"{Q0}.weight", f"{UP1}.weight"):
        assert_close(got[name], want[name])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_matrices_stored_the_other_way_round(tmp_path, said, dora):
    """The shapes tell, and for square ones the biases of the others do; the config does not."""
    base = model(tmp_path / "base", GPT, torch.float32)
    modules = {"h.0.attn.c_attn": 3 * WIDTH, "h.0.attn.c_proj": WIDTH, "h.0.plain": WIDTH}
    tensors = {}
    for seed, (module, out) in enumerate(modules.items()):
        tensors |= linear(module, out, WIDTH, seed=7 * seed)
        tensors |= magnitude(module, out) if dora else {}
    write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=said, use_dora=dora)
    got, want = taken(tmp_path), merged(base, tensors, swapped=("c_attn", "c_proj"))
    for name in base:
        assert_close(got[name], want[name])


def test_where_all_are_square_the_config_decides(tmp_path):
    shapes = {"h.0.c_proj.weight": (WIDTH, WIDTH), "h.0.c_proj.bias": (WIDTH,)}
    base = model(tmp_path / "base", shapes, torch.float32)
    tensors = linear("h.0.c_proj", WIDTH, WIDTH)
    for said in (False, True):
        write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=said)
        want = merged(base, tensors, swapped=("c_proj",) if said else ())
        assert_close(taken(tmp_path)["h.0.c_proj.weight"], want["h.0.c_proj.weight"])


def test_rows_and_columns_of_zeros_stay_zeros(tmp_path):
    base = model(tmp_path / "base", dtype=torch.float32)
    base[f"{UP1}.weight"][3] = 0
    base[f"{EMBED}.weight"][:, 2] = 0
    write_model(tmp_path / "base", base)
    tensors = linear(UP1, INNER, WIDTH) | magnitude(UP1, INNER)
    tensors |= embedding(EMBED, VOCABULARY, WIDTH) | magnitude(EMBED, WIDTH)
    tensors[f"{UP1}.lora_B.weight"][3] = 0
    tensors[f"{EMBED}.lora_embedding_B"][2] = 0
    write_adapter(tmp_path / "adapter", tensors, use_dora=True)
    got = taken(tmp_path)
    assert (got[f"{UP1}.weight"][3] == 0).all()
    assert (got[f"{EMBED}.weight"][:, 2] == 0).all()


def test_fused_attention(tmp_path):
    shapes = {"attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.out_proj.weight": (WIDTH, WIDTH)}
    base = model(tmp_path / "base", shapes, torch.float32)
    tensors = linear("attn", 3 * WIDTH, WIDTH) | linear("attn.base_layer.out_proj", WIDTH, WIDTH)
    write_adapter(tmp_path / "adapter", tensors)
    renamed = {name.replace(".base_layer", ""): tensor for name, tensor in tensors.items()}
    known = {name.replace("in_proj_weight", "weight"): tensor for name, tensor in base.items()}
    want = merged(known, renamed)
    got = taken(tmp_path)
    assert_close(got["attn.in_proj_weight"], want["attn.weight"])
    assert_close(got["attn.out_proj.weight"], want["attn.out_proj.weight"])


# --- laws -------------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": ["{a}", "{b}", "base"]},
    "ties": {
        "merge_method": "ties", "base_model": "base", "models": ["{a}", "{b}"],
        "parameters": {"density": 0.4, "weight": 0.7}},
    "dare": {
        "merge_method": "dare_ties", "base_model": "{a}", "models": ["{b}", "base"],
        "parameters": {"density": 0.5}},
    "selection": {
        "merge_method": "parameter_selection", "base_model": "base", "models": ["{a}", "{b}"],
        "parameters": {"resample": "all"}},
    "slerp": {
        "merge_method": "slerp", "base_model": "{a}", "models": ["{b}"], "parameters": {"t": 0.4}},
    "breadcrumbs": {
        "merge_method": "breadcrumbs", "base_model": "base", "models": ["{a}", "{b}"],
        "parameters": {"density": 0.6}},
    "slices": {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "{a}", "layer_range": [0, 2]}]},
                   {"sources": [{"model": "{b}", "layer_range": [1, 2]}]}]},
    "rules": {
        "merge_method": "linear", "models": ["{a}", "{b}"], "base_model": "base",
        "rules": [{"match": "*q_proj*", "take": "{b}"}]},
    "nested": {
        "merge_method": "linear",
        "models": [{"model": {"merge_method": "dare_linear", "base_model": "base",
                              "models": ["{a}"], "parameters": {"density": 0.5}}}, "{b}"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A base with two adapters, and the folders that merging each of them gives."""
    folder = tmp_path_factory.mktemp("family")
    model(folder / "base")
    plain = linear(Q0, WIDTH, WIDTH) | linear(UP1, INNER, WIDTH, seed=5)
    plain |= embedding(EMBED, VOCABULARY, WIDTH, seed=6)
    write_adapter(folder / "plain", plain)
    dora = linear(Q0, WIDTH, WIDTH, seed=20) | magnitude(Q0, WIDTH)
    dora |= embedding(EMBED, VOCABULARY, WIDTH, seed=8) | magnitude(EMBED, WIDTH)
    write_adapter(folder / "dora", dora | {"model.norm.weight": some(WIDTH, seed=3)}, use_dora=True)
    for name in ("plain", "dora"):
        recipe = {"merge_method": "passthrough", "models": [f"base+{name}"]}
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        merge(path, folder / f"merged-{name}")
    return folder


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_merge_with_adapters_is_the_merge_of_the_merged(family, tmp_path, name):
    text = json.dumps({**RECIPES[name], "seed": 7})
    results = []
    for kind, a, b in (
        ("adapters", "base+plain", "base+dora"), ("folders", "merged-plain", "merged-dora"),
    ):  # fmt: skip
        path = family / f"{name}-{kind}.yaml"
        path.write_text(text.replace("{a}", a).replace("{b}", b))
        merge(path, tmp_path / kind)
        results.append(read_model(tmp_path / kind))
    first, second = results
    assert first.keys() == second.keys()
    for tensor in first:
        assert_same_bits(first[tensor], second[tensor])


def test_threads_memory_and_shards_do_not_show(tmp_path):
    shapes = {"model.layers.0.a.weight": (700, 300), "model.embed_tokens.weight": (900, 257)}
    base = model(tmp_path / "base", shapes)
    write_model(tmp_path / "shards", base, shards=2, config={})
    tensors = linear("model.layers.0.a", 700, 300, rank=9) | magnitude("model.layers.0.a", 700)
    tensors |= embedding(EMBED, 900, 257, rank=9) | magnitude(EMBED, 257)
    write_adapter(tmp_path / "adapter", tensors, r=9, use_dora=True)
    results = []
    for number, (name, threads, memory) in enumerate(
        [("base", 1, None), ("base", 3, None), ("base", 2, 30 << 20), ("shards", 2, None)]
    ):
        recipe = {"merge_method": "passthrough", "models": [f"{name}+adapter"]}
        path = tmp_path / f"{number}.yaml"
        path.write_text(json.dumps(recipe))
        plan = make_plan(load_recipe(path))
        run_plan(plan, tmp_path / str(number), memory=memory, threads=threads)
        results.append(read_model(tmp_path / str(number)))
    for result in results[1:]:
        for name, tensor in results[0].items():
            assert_same_bits(result[name], tensor)


def test_the_base_is_read_once(tmp_path):
    model(tmp_path / "base", {"model.layers.0.a.weight": (64, 64)})
    names = []
    for number in range(3):
        tensors = linear("model.layers.0.a", 64, 64, seed=number)
        write_adapter(tmp_path / f"adapter{number}", tensors)
        names.append(f"base+adapter{number}")
    path = tmp_path / "recipe.yaml"
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": names}
    path.write_text(json.dumps(recipe))
    (tensor,) = make_plan(load_recipe(path)).tensors
    assert len(tensor.inputs) == 1 + 2 * len(names)


# --- tied heads -------------------------------------------------------------------------------


def tied(folder: Path) -> dict[str, torch.Tensor]:
    shapes = {name: shape for name, shape in TENSORS.items() if name != "lm_head.weight"}
    return model(
        folder, shapes, tie_word_embeddings=True, text_config={"tie_word_embeddings": True}
    )


def test_an_adapter_of_a_tied_head_gives_it_weights_of_its_own(tmp_path):
    base = tied(tmp_path / "base")
    tensors = linear(HEAD, VOCABULARY, WIDTH)
    write_adapter(tmp_path / "adapter", tensors)
    got = taken(tmp_path)
    assert_same_bits(got[f"{EMBED}.weight"], base[f"{EMBED}.weight"])
    want = merged({"lm_head.weight": base[f"{EMBED}.weight"]}, tensors)
    assert_close(got["lm_head.weight"], want["lm_head.weight"])
    config = json.loads((tmp_path / "taken/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False
    codes = [p.code for p in make_plan(load_recipe(tmp_path / "passthrough.yaml")).warnings]
    assert codes == ["tied-adapter"]


@pytest.mark.parametrize("both", [False, True])
def test_a_head_stays_tied_to_an_embedding_that_changes(tmp_path, both):
    base = tied(tmp_path / "base")
    tensors = embedding(EMBED, VOCABULARY, WIDTH)
    more = linear(HEAD, VOCABULARY, WIDTH) if both else {}
    write_adapter(tmp_path / "adapter", tensors | more, ensure_weight_tying=both)
    got = taken(tmp_path)
    assert "lm_head.weight" not in got
    assert_close(got[f"{EMBED}.weight"], merged(base, tensors)[f"{EMBED}.weight"])
    config = json.loads((tmp_path / "taken/config.json").read_text())
    assert config["tie_word_embeddings"] is True
    codes = [p.code for p in make_plan(load_recipe(tmp_path / "passthrough.yaml")).warnings]
    assert codes == ([] if both else ["tied-adapter"])


def test_a_saved_head_beside_a_tied_embedding(tmp_path):
    tied(tmp_path / "base")
    saved = {
        name: some(VOCABULARY, WIDTH, seed=seed).to(torch.bfloat16)
        for seed, name in enumerate((f"{EMBED}.weight", "lm_head.weight"))
    }
    write_adapter(tmp_path / "adapter", saved, modules_to_save=["embed_tokens", "lm_head"])
    got = taken(tmp_path)
    for name, tensor in saved.items():
        assert_same_bits(got[name], tensor)


# --- what a plan says -------------------------------------------------------------------------


def test_planning_reads_no_weights(family, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(ReadFiles, "read_into", refuse)
    plan = make_plan(load_recipe(family / "plain.yaml"))
    assert plan.input_bytes > 0


def test_a_changed_adapter_is_another_run(tmp_path):
    model(tmp_path / "base")
    write_adapter(tmp_path / "adapter", linear(Q0, WIDTH, WIDTH))
    first = taken(tmp_path)
    recipe = tmp_path / "passthrough.yaml"
    before = fingerprint(make_plan(load_recipe(recipe)))
    write_adapter(tmp_path / "adapter", linear(Q0, WIDTH, WIDTH, seed=5))
    assert fingerprint(make_plan(load_recipe(recipe))) != before
    assert not torch.equal(taken(tmp_path)[f"{Q0}.weight"], first[f"{Q0}.weight"])
    write_adapter(tmp_path / "adapter", linear(Q0, WIDTH, WIDTH), lora_alpha=9)
    assert fingerprint(make_plan(load_recipe(recipe))) != before


def test_explain_and_plan_name_the_adapter(family):
    explained = call("explain", family / "plain.yaml", f"{Q0}.weight")
    assert explained.code == 0
    assert f"{PREFIX}{Q0}.lora_B.weight" in explained.out
    assert "lowrank" in explained.out
    planned = call("plan", family / "plain.yaml")
    assert "3 tensors adapted by plain" in planned.out


def test_a_broken_adapter_is_named(tmp_path):
    model(tmp_path / "base")
    tensors = linear(Q0, WIDTH, WIDTH)
    tensors[f"{Q0}.lora_A.weight"][0, 0] = torch.nan
    write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(ExecutionError, match=r"q_proj\.lora_A\.weight: holds NaN or infinity"):
        taken(tmp_path)


# --- other vocabularies -----------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_embedding_over_the_tokens_of_two_models(tmp_path, dora):
    for seed, (name, text) in enumerate({"a": "", "b": OTHER_TEXT}.items()):
        tokenizer = make_tokenizer("words", text) if text else make_tokenizer("words")
        save_tokenizer(tmp_path / name, tokenizer)
        write_llama(tmp_path / name, tokenizer.get_vocab_size(), seed=seed)
    rows, width = read_model(tmp_path / "a")[f"{EMBED}.weight"].shape
    tensors = embedding(EMBED, rows, width)
    tensors |= magnitude(EMBED, width) if dora else linear(HEAD, rows, width)
    write_adapter(tmp_path / "adapter", tensors, use_dora=dora)
    taken(tmp_path, "a+adapter")
    results = []
    for kind, model_name in (("lazy", "a+adapter"), ("folder", "taken")):
        path = tmp_path / f"{kind}.yaml"
        recipe = {"merge_method": "linear", "models": [model_name, "b"]}
        path.write_text(json.dumps({**recipe, "tokenizer": {"source": "union"}}))
        if dora and kind == "lazy":
            with pytest.raises(PlanError, match="embed_tokens"):
                merge(path, tmp_path / f"merged-{kind}")
            return
        merge(path, tmp_path / f"merged-{kind}")
        results.append(read_model(tmp_path / f"merged-{kind}"))
    for name, tensor in results[0].items():
        assert_same_bits(tensor, results[1][name])
