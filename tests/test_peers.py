"""What mergekit 0.1.5 answers with a wrong model or a late traceback, and what we answer.

The cases are the first two lists of PEERS.md, observed by running mergekit. Each is a whole
recipe over real files, given to the command line.

Waiting for slices: `layer_range: [4, 2]`; final norm and head from the first slice's models;
depth up-scaling that fails on `layer_types`. Waiting for tokenizers and chat templates:
`chat_template: chatmll`, generation config lost when a tokenizer is set, tokens beyond
vocab_size. Waiting for several documents: a stale intermediate. Waiting for
the Hub: the model card that asks it when all is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from support.command import call, files_of
from support.models import (
    llama_like,
    load_exactly,
    logits,
    made,
    new_model,
    read_model,
    write_model,
)

TIES = "merge_method: ties\nbase_model: x\nmodels:\n  - a\n  - b\n"
LINEAR = "merge_method: linear\nmodels:\n  - a\n  - b\n"
SLERP = "merge_method: slerp\nbase_model: x\nmodels: [a]\n"

# recipe -> line, column, key or tensor, what is said, hint
REFUSED = {
    # exit code 0 with a wrong or useless model
    "densty": (TIES + "parameters: {densty: 0.5}\n", 6, 14, "parameters.densty", "unknown key",
               "did you mean 'density'?"),
    "lamda": (TIES + "parameters: {lamda: 0.5}\n", 6, 14, "parameters.lamda", "unknown key",
              "did you mean 'lambda'?"),
    "normalise": (TIES + "parameters: {normalise: 1}\n", 6, 14, "parameters.normalise",
                  "unknown key", "did you mean 'normalize'?"),
    "dtyp": (LINEAR + "dtyp: bfloat16\n", 5, 1, "dtyp", "unknown key", "did you mean 'dtype'?"),
    "seed among the parameters": (LINEAR + "parameters: {seed: 3}\n", 5, 14, "parameters.seed",
                                  "unknown key", "valid: "),
    "weight NaN": (LINEAR + "parameters: {weight: .nan}\n", 5, 22, "parameters.weight",
                   ".nan is not a finite number", ""),
    "weight infinite": (LINEAR + "parameters: {weight: .inf}\n", 5, 22, "parameters.weight",
                        ".inf is not a finite number", ""),
    "weights that sum to 0": (
        "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
        "  - {model: b, parameters: {weight: -1}}\n", 1, 15, "", "sum to 0", ""),
    "density 5": (TIES + "parameters: {density: 5}\n", 6, 23, "parameters.density",
                  "5 is out of range", "between 0 and 1"),
    "density -0.3": (TIES + "parameters: {density: -0.3}\n", 6, 23, "parameters.density",
                     "-0.3 is out of range", "between 0 and 1"),
    "t 7": (SLERP + "parameters: {t: 7}\n", 4, 17, "parameters.t", "7 is out of range",
            "between 0 and 1"),
    "a filter that fits nothing": (
        LINEAR + "parameters:\n  weight:\n    - {filter: self_atn, value: 2}\n    - value: 1\n",
        7, 7, "parameters.weight.0", "filter 'self_atn' fits none of 19 tensors",
        "names look like model.layers.0"),
    "a filter with a star": (
        LINEAR + "parameters:\n  weight:\n    - {filter: '*.mlp.*', value: 2}\n    - value: 1\n",
        7, 7, "parameters.weight.0", "fits none", "substring"),
    # late or unhelpful errors
    "dare-ties": ("merge_method: dare-ties\nbase_model: x\nmodels: [a]\n", 1, 15, "merge_method",
                  "unknown merge method 'dare-ties'", "did you mean 'dare_ties'?"),
    "weigth": (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weigth: 1}\n  - model: b\n",
        4, 18, "models.0.parameters.weigth", "unknown key", "did you mean 'weight'?"),
    "a path that does not exist": (
        "merge_method: linear\nmodels:\n  - a\n  - ./models/b\n", 4, 5, "models/b",
        "does not exist", ""),
    "a path that nearly exists": (
        "merge_method: linear\nmodels:\n  - a\n  - ./thin-modle\n", 4, 5, "thin-modle",
        "does not exist", "did you mean"),
    "weight heavy": (
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: heavy}\n  - b\n",
        4, 26, "models.0.parameters.weight", "expected a number, found 'heavy'", ""),
    "other layer counts": (
        "merge_method: linear\nmodels:\n  - a\n  - thin-model\n", 4, 5, "model.layers",
        "the models have different numbers of layers: a 3, thin-model 2", "depth"),
    "an unknown dtype": (LINEAR + "dtype: brain16\n", 5, 8, "dtype", "unknown dtype 'brain16'",
                         "bfloat16"),
}  # fmt: skip

# What will be refused now, because the feature is to come, and then, because it is wrong: the line.
REFUSED_NOW_AND_THEN = {
    "layers from 4 to 2": (
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [4, 2]}]\n",
        (2, 3)),
    "chatmll": (LINEAR + "chat_template: chatmll\n", (5,)),
    "an unknown module": ("merge_method: linear\nmodules: {txt: {models: [a, b]}}\n", (2,)),
    "an adapter that does not exist": (LINEAR + "base_model: x+lora\n", (5,)),
    "a model as an adapter": (
        "merge_method: linear\nmodels:\n  - model: {model: a, lora: b}\n  - b\n", (3,)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models x, a, b that fit, and one of fewer layers."""
    folder = tmp_path_factory.mktemp("peers")
    for seed, name in enumerate("xab"):
        write_model(folder / name, llama_like(seed, head=False) | {
            "lm_head.weight": llama_like(seed)["lm_head.weight"],
            "model.layers.0.self_attn.q_proj.bias": torch.full((6,), float(seed)),
        })  # fmt: skip
    write_model(folder / "thin-model", {
        name: tensor for name, tensor in read_model(folder / "a").items() if "layers.2." not in name
    })  # fmt: skip
    return folder


def run(folder: Path, text: str, out: Path, *more: object):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return call("run", path, "-o", out, *more)


@pytest.mark.parametrize("case", REFUSED)
def test_what_mergekit_merges_wrongly_or_refuses_too_late(folder, tmp_path, case):
    text, line, column, where, message, hint = REFUSED[case]
    done = run(folder, text, tmp_path / "o")
    assert (done.code, done.out) == (2, "")
    (said,) = done.err.splitlines()  # one mistake, one problem
    assert re.search(rf"recipe\.yaml:{line}:{column}\)$", said), said
    assert where in said
    assert message in said
    assert hint in said.partition(message)[2]
    assert not (tmp_path / "o").exists()
    checked = call("check", folder / "recipe.yaml")
    assert (checked.code, checked.err) == (2, done.err)


@pytest.mark.parametrize("case", REFUSED_NOW_AND_THEN)
def test_what_is_refused_with_or_without_the_feature(folder, tmp_path, case):
    text, lines = REFUSED_NOW_AND_THEN[case]
    done = run(folder, text, tmp_path / "o")
    assert (done.code, done.out) == (2, "")
    assert int(re.search(r"recipe\.yaml:(\d+):\d+\)", done.err)[1]) in lines
    assert not (tmp_path / "o").exists()


def test_no_case_is_lost():
    assert len(REFUSED) + len(REFUSED_NOW_AND_THEN) == 25


def test_bf16_and_the_short_form_of_models_are_taken(folder, tmp_path):
    text = "merge_method: linear\nmodels: [a, b]\ndtype: bf16\noutput: {shard_size: 5GB}\n"
    assert run(folder, text, tmp_path / "o").code == 0
    assert {tensor.dtype for tensor in read_model(tmp_path / "o").values()} == {torch.bfloat16}


def test_a_llama_with_biases_keeps_every_tensor(folder, tmp_path):
    assert run(folder, LINEAR, tmp_path / "o").code == 0
    result, source = read_model(tmp_path / "o"), read_model(folder / "a")
    assert result.keys() == source.keys()
    assert result["model.layers.0.self_attn.q_proj.bias"].tolist() == [1.5] * 6


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_the_base_is_not_merged_as_one_more_model(folder, tmp_path, method):
    text = f"merge_method: {method}\nmodels: [a, b]\n"
    assert run(folder, text, tmp_path / "without").code == 0
    done = run(folder, text + "base_model: x\n", tmp_path / "with")
    assert done.code == 0
    without, with_base = read_model(tmp_path / "without"), read_model(tmp_path / "with")
    assert all(with_base[name].equal(tensor) for name, tensor in without.items())
    assert "[base-not-merged]" in done.err, "it is said, because mergekit does otherwise"


def test_a_head_of_its_own_unties_the_config(tmp_path):
    recipe = f"merge_method: linear\nmodels: [{made('llama-tied', 1)}, {made('llama', 2)}]\n"
    assert run(tmp_path, recipe, tmp_path / "o").code == 0
    assert json.loads((tmp_path / "o/config.json").read_text())["tie_word_embeddings"] is False
    states = [new_model(*which).state_dict() for which in (("llama-tied", 1), ("llama", 2))]
    wanted = new_model("llama")
    wanted.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    assert torch.allclose(logits(load_exactly(tmp_path / "o")), logits(wanted), atol=1e-5)


def test_the_generation_config_stays_with_a_tokenizer_set(tmp_path):
    base = made("llama", 0, tokenizer=True)
    recipe = (
        f"merge_method: linear\nbase_model: {base}\nmodels: [{base}, {made('llama', 1)}]\n"
        "tokenizer: {source: base}\n"
    )
    assert run(tmp_path, recipe, tmp_path / "o").code == 0
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "o" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_input_is_not_overwritten(folder, force):
    before = files_of(folder / "a")
    done = run(folder, LINEAR, folder / "a", *force)
    assert (done.code, done.out) == (2, "")
    assert files_of(folder / "a") == before


def test_no_stale_shard_is_left_by_a_second_run(folder, tmp_path):
    assert run(folder, LINEAR + "output: {shard_size: 300}\n", tmp_path / "o").code == 0
    assert len(list((tmp_path / "o").glob("*.safetensors"))) > 5
    assert run(folder, TIES, tmp_path / "o", "--force").code == 0
    assert [path.name for path in (tmp_path / "o").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_model_that_changed_at_the_same_path_is_read_anew(folder, tmp_path):
    for value in (1.0, 3.0):
        tensors = {name: torch.full_like(t, value) for name, t in read_model(folder / "a").items()}
        write_model(tmp_path / "changing", tensors)
        recipe = f"merge_method: linear\nmodels: [{tmp_path}/changing, {tmp_path}/changing]\n"
        done = run(tmp_path, recipe, tmp_path / "o", "--force")
        assert done.code == 0
        result = read_model(tmp_path / "o")
        assert {v for tensor in result.values() for v in tensor.unique().tolist()} == {value}


def test_weights_that_are_not_finite_are_not_written(folder, tmp_path):
    # the mean of the largest numbers does not fit into float16
    for name in "pq":
        write_model(tmp_path / name, {"w": torch.full((5,), 3e38)})
    recipe = f"merge_method: linear\nmodels: [{tmp_path}/p, {tmp_path}/q]\nout_dtype: float16\n"
    done = run(tmp_path, recipe, tmp_path / "o")
    assert (done.code, done.out) == (2, "")
    assert "w: element 0 of the result is not a finite number in float16" in done.err
    assert not (tmp_path / "o").exists()


def test_a_run_needs_no_network(tmp_path, monkeypatch):
    import socket

    def broken(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", broken)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, llama_like(seed))
    assert run(Path(), LINEAR, Path("o")).code == 0
