"""Merges with a `tokenizer` or a `chat_template`: files that transformers loads, rows as they
should be.

Rows are compared with the rules applied token by token to plain tensors, tokens by their texts in
AutoTokenizer's vocabulary.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mergeconf import load_recipe, make_plan, run_plan
from mergeconf.checkpoint.chat_templates import TEMPLATES
from mergeconf.errors import CheckpointError, PlanError
from support.models import KINDS as MODELS
from support.models import load_exactly, made
from support.vocabularies import (
    KINDS,
    OTHER_TEXT,
    make_tokenizer,
    read_json,
    save_tokenizer,
    write_llama,
)

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": " A merge. "},
    {"role": "user", "content": "Of what?"},
]
Rows = Mapping[str, torch.Tensor]


class Family:
    """A base and two models with other tokens, and what their rows are."""

    def __init__(self, folder: Path, kind: str = "words", **options: Any) -> None:
        self.folder = folder
        tied = options.get("tied", (False, False, False))
        dtypes = options.get("dtypes", (torch.float32,) * 3)
        tokenizers = [make_tokenizer(kind), make_tokenizer(kind, OTHER_TEXT), make_tokenizer(kind)]
        tokenizers[1].add_special_tokens([AddedToken("<|im_start|>", special=True)])
        for each in tokenizers[1:]:
            each.add_tokens(["<think>"])
        for seed, name in enumerate("abc"):
            rows = tokenizers[seed].get_vocab_size() + (
                options.get("padding", 3) if not seed else 0
            )
            save_tokenizer(folder / name, tokenizers[seed], chat_template=f"{{{{ '{name}' }}}}")
            write_llama(folder / name, rows, seed=seed, tied=tied[seed], dtype=dtypes[seed])

    def path(self, name: str) -> str:
        """Return a model's folder, as recipes name it."""
        return str(self.folder / name)

    def vocabulary(self, name: str) -> dict[str, int]:
        """Return a model's tokens, as AutoTokenizer has them."""
        return vocabulary_of(self.folder / name)

    def rows(self, model: str, tensor: str) -> dict[str, torch.Tensor]:
        """Return a model's rows by token; a tied head's are the embedding's."""
        tensors = load_file(self.folder / model / "model.safetensors")
        whole = tensors.get(tensor, tensors[EMBED])
        found = self.vocabulary(model).items()
        return {token: whole[number] for token, number in found if number < len(whole)}

    def recipe(self, tokenizer: Any, *, base: bool = False, **keys: Any) -> dict[str, Any]:
        """Return a plain average, with `a` as the base or as one of the models."""
        names = "bc" if base else "abc"
        recipe: dict[str, Any] = {
            "merge_method": "task_arithmetic" if base else "linear",
            "models": [{"model": self.path(n), "parameters": {"weight": 0.5}} for n in names],
            "tokenizer": tokenizer,
            **keys,
        }
        return {**recipe, "base_model": self.path("a")} if base else recipe


def vocabulary_of(folder: Path) -> dict[str, int]:
    return AutoTokenizer.from_pretrained(folder).get_vocab()


def run(recipe: Mapping[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    run_plan(make_plan(load_recipe(recipe)), out, **options)
    return load_file(out / "model.safetensors")


def filled(token: str, models: list[Rows], base: Rows | None) -> torch.Tensor:
    """Return the row for models that lack the token, by mergekit's rule."""
    having = [rows[token] for rows in models if token in rows]
    if not having:
        return torch.zeros_like(next(iter(models[0].values())))
    if len(having) > 1 and base is not None and token in base:
        return base[token]
    total = torch.zeros_like(having[0])
    for row in having:
        total = total + row
    return total / len(having)


def average(token: str, models: list[Rows], base: Rows | None) -> torch.Tensor:
    """Return the row of the merge by `Family.recipe`, in float32 as the method computes it."""
    rows = [r[token] if token in r else filled(token, models, base) for r in models]
    rows = [row.float() for row in rows]
    if base is None:
        total = sum(0.5 * row for row in rows)
        assert isinstance(total, torch.Tensor)
        return total / (0.5 * len(rows))
    first, *others = rows
    return first + sum(0.5 * (row - first) for row in others)


def assert_loads(out: Path, rows: int) -> None:
    """Load the output with transformers and run it."""
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == rows
    assert model.get_input_embeddings().weight.shape[0] == rows
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        logits = model(**tokenizer("the quick <think> zebras", return_tensors="pt")).logits
    assert logits.shape[-1] == rows
    assert logits.isfinite().all()


# --- embeddings and heads -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [False, True])
def test_a_union_has_all_tokens_and_their_rows(tmp_path, kind, base):
    family = Family(tmp_path, kind)
    got = run(family.recipe({"source": "union"}, base=base), tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert tokens.keys() == set().union(*(family.vocabulary(name) for name in "abc"))
    assert {tokens[token] for token in tokens} == set(range(len(tokens)))
    assert {**tokens, **family.vocabulary("a")} == tokens  # the first model's ids stay
    for name in (EMBED, HEAD):
        models: list[Rows] = [family.rows(model, name) for model in "abc"]
        assert len(got[name]) == len(tokens)
        for token, number in tokens.items():
            want = average(token, models, models[0] if base else None)
            assert torch.allclose(got[name][number], want, rtol=1e-6, atol=1e-6), token
    assert_loads(tmp_path / "out", len(tokens))


@pytest.mark.parametrize("source", ["base", "a", "b", "c"])
def test_the_tokenizer_of_one_model(tmp_path, source):
    family = Family(tmp_path)
    taken = "a" if source == "base" else source
    recipe = family.recipe(
        {"source": family.path(source) if len(source) == 1 else source}, base=True
    )
    got = run(recipe, tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert tokens == family.vocabulary(taken)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        want = (tmp_path / taken / file).read_bytes()
        assert (tmp_path / "out" / file).read_bytes() == want
    for name in (EMBED, HEAD):
        models: list[Rows] = [family.rows(model, name) for model in "abc"]
        for token, number in tokens.items():
            want = average(token, models, models[0])
            assert torch.allclose(got[name][number], want, rtol=1e-6, atol=1e-6), token
    assert_loads(tmp_path / "out", len(tokens))


def test_what_the_recipe_says_of_tokens(tmp_path):
    family = Family(tmp_path)
    b, c = family.path("b"), family.path("c")
    section = {
        "source": "union",
        "tokens": {
            "<zero>": {"source": {"kind": "zero"}},
            "<text>": {"source": {"kind": "model_token", "model": b, "token": "<|im_start|>"}},
            "<id>": {"source": {"kind": "model_token", "model": c, "token_id": 5}},
            "<think>": {"source": c},
            "</s>": {"source": b, "force": True},
        },
    }
    got = run(family.recipe(section), tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    for name in (EMBED, HEAD):
        rows = {model: family.rows(model, name) for model in "abc"}
        own = load_file(tmp_path / "c" / "model.safetensors")[name]
        for token, want in {
            "<zero>": torch.zeros(16),
            "<text>": rows["b"]["<|im_start|>"],
            "<id>": own[5],
            "</s>": rows["b"]["</s>"],
            "<think>": (2 * rows["c"]["<think>"] + rows["b"]["<think>"]) / 3,
        }.items():
            assert torch.allclose(got[name][tokens[token]], want, rtol=1e-6, atol=1e-6), token
    assert_loads(tmp_path / "out", len(tokens))


def test_the_mean_of_as_many_models_as_have_the_token(tmp_path):
    tokens = [["x"], ["x", "y"], ["x", "y", "z"], ["x", "y", "z"], ["x", "y", "z"]]
    rows: list[Rows] = []
    for seed, extra in enumerate(tokens):
        folder = tmp_path / str(seed)
        tokenizer = make_tokenizer("words")
        tokenizer.add_tokens(extra)
        save_tokenizer(folder, tokenizer)
        size = tokenizer.get_vocab_size()
        table = write_llama(folder, size, seed=seed)[EMBED]
        rows.append({token: table[number] for token, number in tokenizer.get_vocab().items()})
    models = [{"model": str(tmp_path / str(n)), "parameters": {"weight": 0.5}} for n in range(5)]
    recipe = {"merge_method": "linear", "models": models, "tokenizer": {"source": "union"}}
    got = run(recipe, tmp_path / "out")[EMBED]
    for token, number in vocabulary_of(tmp_path / "out").items():
        want = average(token, rows, None)
        assert torch.allclose(got[number], want, rtol=1e-6, atol=1e-6), token


def test_rows_are_padded_with_the_mean_of_all_others(tmp_path):
    family = Family(tmp_path)
    got = run(family.recipe({"pad_to_multiple_of": 64}), tmp_path / "out")
    tokens = len(vocabulary_of(tmp_path / "out"))
    rows = -(-tokens // 64) * 64
    assert rows > tokens
    for name in (EMBED, HEAD):
        assert got[name].shape[0] == rows
        want = got[name][:tokens].mean(dim=0).expand(rows - tokens, -1)
        assert torch.allclose(got[name][tokens:], want, rtol=1e-5, atol=1e-6)
    assert_loads(tmp_path / "out", rows)


@pytest.mark.parametrize("tied", [(True, True, True), (True, False, False), (False, True, False)])
def test_tied_and_untied_heads_in_one_merge(tmp_path, tied):
    family = Family(tmp_path, tied=tied)
    got = run(family.recipe({"source": "union"}, base=True), tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["tie_word_embeddings"] is all(tied)
    assert (HEAD in got) is not all(tied)
    tokens = vocabulary_of(tmp_path / "out")
    for name in {EMBED, HEAD} & got.keys():
        models: list[Rows] = [family.rows(model, name) for model in "abc"]
        for token, number in tokens.items():
            want = average(token, models, models[0])
            assert torch.allclose(got[name][number], want, rtol=1e-6, atol=1e-6), (name, token)
    assert_loads(tmp_path / "out", len(tokens))


def test_filled_rows_are_rounded_to_the_models_own_format(tmp_path):
    kinds = (torch.bfloat16, torch.float32, torch.float16)
    family = Family(tmp_path, dtypes=kinds)
    got = run(family.recipe({"source": "union"}, dtype="float32"), tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    models = [family.rows(model, EMBED) for model in "abc"]
    for token, number in tokens.items():
        having = [(r[token].float()) for r in models if token in r]
        mean = sum(having[1:], having[0]) / len(having)
        rows = [
            r[token].float() if token in r else mean.to(kind).float()
            for r, kind in zip(models, kinds, strict=True)
        ]
        want = (0.5 * rows[0] + 0.5 * rows[1] + 0.5 * rows[2]) / 1.5
        assert torch.allclose(got[EMBED][number], want, rtol=1e-6, atol=1e-7), token


@pytest.mark.parametrize("shape", [(None,), (1, None)])
def test_biases_over_tokens_follow(tmp_path, shape):
    family = Family(tmp_path)
    name = "lm_head.bias" if len(shape) == 1 else "final_logits_bias"
    for seed, model in enumerate("abc"):
        path = tmp_path / model / "model.safetensors"
        tensors = load_file(path)
        size = [len(tensors[HEAD]) if part is None else part for part in shape]
        generator = torch.Generator().manual_seed(seed)
        tensors[name] = torch.randn(size, generator=generator)
        save_file(tensors, path, {"format": "pt"})
    got = run(family.recipe({"pad_to_multiple_of": 8}), tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    models: list[Rows] = []
    for model in "abc":
        values = load_file(tmp_path / model / "model.safetensors")[name].flatten()
        models.append({token: values[i] for token, i in family.vocabulary(model).items()})
    values = got[name].flatten()
    assert got[name].shape == tuple(len(got[HEAD]) if part is None else part for part in shape)
    for token, number in tokens.items():
        assert torch.allclose(values[number], average(token, models, None), atol=1e-6), token
    mean = values[: len(tokens)].mean()
    assert torch.allclose(values[len(tokens) :], mean.expand(len(values) - len(tokens)), atol=1e-6)


@pytest.mark.parametrize("method", ["slerp", "ties", "parameter_selection", "della_linear"])
def test_the_same_bits_however_it_is_computed(tmp_path, method):
    family = Family(tmp_path, "bytes")
    names = "b" if method == "slerp" else "bc"
    recipe = {
        "merge_method": method,
        "base_model": family.path("a"),
        "models": [family.path(name) for name in names],
        "parameters": {
            "slerp": {"t": 0.3}, "ties": {"weight": 1, "density": 0.4},
            "parameter_selection": {"resample": "all"},
            "della_linear": {"weight": 1, "density": 0.5},
        }[method],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 32},
        "seed": 5,
    }  # fmt: skip
    outs = [tmp_path / name for name in ("one", "two")]
    plan = make_plan(load_recipe(recipe))
    run_plan(plan, outs[0], threads=1)
    run_plan(plan, outs[1], threads=3)
    files = [{path.name: path.read_bytes() for path in out.iterdir()} for out in outs]
    assert files[0] == files[1]
    again = make_plan(load_recipe(recipe))
    assert again.sidecars == plan.sidecars


def test_models_whose_tokens_are_the_same_are_not_touched(tmp_path):
    family = Family(tmp_path, padding=0)
    save_tokenizer(tmp_path / "d", make_tokenizer("words"))
    write_llama(tmp_path / "d", len(family.vocabulary("a")), seed=7)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": family.path("a"),
        "models": [{"model": family.path("d"), "parameters": {"weight": 1}}],
        "tokenizer": {"source": "union"},
    }
    plan, plain = (
        make_plan(load_recipe({k: v for k, v in recipe.items() if k != left_out}))
        for left_out in ("", "tokenizer")
    )
    assert [t.expression for t in plan.tensors] == [t.expression for t in plain.tensors]
    assert plan.sidecars.keys() == plain.sidecars.keys()
    assert {name: file for name, file in plan.sidecars.items() if name != "recipe.yaml"} == {
        name: file for name, file in plain.sidecars.items() if name != "recipe.yaml"
    }


def test_a_merge_of_merges_over_another_vocabulary(tmp_path):
    family = Family(tmp_path)
    inner = {
        "merge_method": "linear",
        "models": [{"model": family.path(n), "parameters": {"weight": 0.5}} for n in "ac"],
        "tokenizer": {"source": "union"},
    }
    outer = {
        "merge_method": "linear",
        "models": [
            {"model": inner, "parameters": {"weight": 0.5}},
            {"model": family.path("b"), "parameters": {"weight": 0.5}},
        ],
        "tokenizer": {"source": "union"},
        "dtype": "float32",
    }
    nested = run(outer, tmp_path / "nested")
    run(inner, tmp_path / "inner")
    outer["models"][0]["model"] = str(tmp_path / "inner")
    stepwise = run(outer, tmp_path / "stepwise")
    assert vocabulary_of(tmp_path / "nested") == vocabulary_of(tmp_path / "stepwise")
    for name, tensor in stepwise.items():
        assert torch.equal(nested[name], tensor), name


def test_what_cannot_be_taken_by_row_is_said(tmp_path):
    family = Family(tmp_path)
    save_tokenizer(tmp_path / "d", make_tokenizer("words"))
    write_llama(tmp_path / "d", read_json(tmp_path / "a" / "config.json")["vocab_size"], seed=7)
    inner = {
        "merge_method": "slerp",
        "base_model": family.path("a"),
        "models": [family.path("d")],
        "parameters": {"t": 0.5},
    }
    recipe = {
        "merge_method": "linear",
        "models": [inner, family.path("b")],
        "parameters": {"weight": 1},
        "tokenizer": {"source": "union"},
    }
    with pytest.raises(PlanError, match=r"needs the whole tensor at once.*run that merge first"):
        make_plan(load_recipe(recipe))


# --- the small files ------------------------------------------------------------------------------


def test_config_and_generation_config_follow_the_tokenizer(tmp_path):
    family = Family(tmp_path)
    tokens = {name: family.vocabulary(name) for name in "abc"}
    for name in "ab":
        GenerationConfig(
            bos_token_id=tokens[name]["<s>"],
            eos_token_id=[tokens[name]["</s>"], 11],
            max_new_tokens=7 if name == "a" else 9,
        ).save_pretrained(tmp_path / name)
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps({**read_json(path), "eos_token_id": tokens["b"]["<|im_start|>"]}))
    path = tmp_path / "a" / "config.json"
    config = {"image_token_id": tokens["a"]["fox"], "forced_eos_token_id": tokens["a"]["</s>"]}
    path.write_text(json.dumps({**read_json(path), **config}))
    for source, changed in (("union", False), (family.path("b"), True)):
        out = tmp_path / f"out-{changed}"
        plan = make_plan(load_recipe(family.recipe({"source": source}, base=True)))
        run_plan(plan, out)
        config, generation = (read_json(out / f"{name}config.json") for name in ("", "generation_"))
        own = read_json(tmp_path / ("b" if changed else "a") / "generation_config.json")
        assert generation["eos_token_id"] == own["eos_token_id"]
        assert generation["max_new_tokens"] == 7  # only ids are of the tokenizer
        lost = [w for w in plan.warnings if w.code == "lost-token-id"]
        if changed:
            assert config["eos_token_id"] == tokens["b"]["<|im_start|>"]
            assert config["forced_eos_token_id"] == tokens["b"]["</s>"]
            assert config["image_token_id"] is None
            assert [w.message for w in lost] == [
                f"image_token_id {tokens['a']['fox']} means 'fox', which is no token of the "
                "output; it is set to null"
            ]
        else:
            assert config["eos_token_id"] == read_json(path)["eos_token_id"]
            assert config["image_token_id"] == tokens["a"]["fox"]
            assert not lost


def test_a_tokenizer_from_outside_the_merge(tmp_path):
    family = Family(tmp_path)
    outside = make_tokenizer("words", ["the zebras graze"])
    save_tokenizer(tmp_path / "outside", outside)
    recipe = family.recipe({"source": str(tmp_path / "outside")}, base=True)
    got = run(recipe, tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert tokens == vocabulary_of(tmp_path / "outside")
    models: list[Rows] = [family.rows(model, EMBED) for model in "abc"]
    for token, number in tokens.items():
        want = average(token, models, models[0])
        assert torch.allclose(got[EMBED][number], want, rtol=1e-6, atol=1e-6), token
    config = read_json(tmp_path / "out" / "config.json")
    assert config["eos_token_id"] == tokens["</s>"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["union", "base"])
def test_tokens_beyond_the_embedding_are_left_out_and_said(tmp_path, kind, source):
    """mergekit: KeyError: 64."""
    family = Family(tmp_path, kind)
    tokenizer = make_tokenizer(kind)
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["<kept>", "<beyond>"])
    save_tokenizer(tmp_path / "a", tokenizer, pad_token="[PAD]")
    write_llama(tmp_path / "a", size + 1)
    plan = make_plan(load_recipe(family.recipe({"source": source}, base=True)))
    (warning,) = [w for w in plan.warnings if w.code == "tokens-without-row"]
    assert warning.message.startswith("2 tokens have ids beyond the")
    assert "'<beyond>', '[PAD]'" in warning.message
    run_plan(plan, tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert "<kept>" in tokens
    assert not {"<beyond>", "[PAD]"} & tokens.keys()
    assert set(tokens.values()) == set(range(len(tokens)))
    assert_loads(tmp_path / "out", len(tokens))


def test_tokens_of_the_model_itself_beyond_the_embedding(tmp_path):
    family = Family(tmp_path, "pieces")
    tokenizer = make_tokenizer("pieces")
    write_llama(tmp_path / "a", tokenizer.get_vocab_size() - 4)
    plan = make_plan(load_recipe(family.recipe({"source": "base"}, base=True)))
    run_plan(plan, tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert len(tokens) == tokenizer.get_vocab_size() - 4
    assert_loads(tmp_path / "out", len(tokens))


def test_tokens_are_added_to_files_without_a_tokenizer_json(tmp_path):
    family = Family(tmp_path, "wordpiece")
    words = [
        t for t, _ in sorted(make_tokenizer("wordpiece").get_vocab().items(), key=lambda x: x[1])
    ]
    for path in (tmp_path / "a").glob("token*"):
        path.unlink()
    (tmp_path / "a" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "a" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "unk_token": "<unk>", "pad_token": "<s>",
                    "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<unk>"})
    )  # fmt: skip
    got = run(family.recipe({"source": "union"}, base=True), tmp_path / "out")
    tokens = vocabulary_of(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    models: list[Rows] = [family.rows(model, EMBED) for model in "abc"]
    assert tokens.keys() == set().union(*models)
    for token, number in tokens.items():
        want = average(token, models, models[0])
        assert torch.allclose(got[EMBED][number], want, rtol=1e-6, atol=1e-6), token


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(tmp_path):
    family = Family(tmp_path)
    for path in (tmp_path / "c").glob("token*"):
        path.unlink()
    write_llama(tmp_path / "c", read_json(tmp_path / "a" / "config.json")["vocab_size"], seed=2)
    plan = make_plan(load_recipe(family.recipe({"source": "union"}, base=True)))
    assert [w.where for w in plan.warnings if w.code == "no-tokenizer"] == [family.path("c")]
    write_llama(tmp_path / "c", 5, seed=2)
    with pytest.raises(
        CheckpointError, match="has no tokenizer, and 5 rows in its embedding where"
    ):
        make_plan(load_recipe(family.recipe({"source": "union"}, base=True)))
    for path in (tmp_path / "a").glob("token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="a: has no tokenizer, which the recipe's"):
        make_plan(load_recipe(family.recipe({"source": "union"}, base=True)))


@pytest.mark.parametrize(
    ("section", "where", "message"),
    [
        ({"source": "bsae"}, "tokenizer.source", "no local folder; did you mean 'base'?"),
        ({"tokens": {"<x>": {}}}, "tokenizer.tokens.<x>", "needs a 'source': 'A' lacks this token"),
        ({"tokens": {"</s>": {"force": True}}}, "tokenizer.tokens.</s>", "'force' is true"),
        ({"tokens": {"<x>": {"source": "B"}}}, "tokenizer.tokens.<x>.source",
         "'B' has no token '<x>'"),
        ({"tokens": {"<|im_stat|>": {"source": "B"}}}, "tokenizer.tokens.<|im_stat|>.source",
         "did you mean '<|im_start|>'?"),
        ({"tokens": {"<x>": {"source": {"kind": "model_token", "model": "B", "token": "no"}}}},
         "tokenizer.tokens.<x>.source", "'B' has no token 'no'"),
        ({"tokens": {"<x>": {"source": {"kind": "model_token", "model": "C", "token_id": 9999}}}},
         "tokenizer.tokens.<x>.source.token_id", "token_id 9999 is out of range"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_there(tmp_path, section, where, message):
    family = Family(tmp_path)
    text = json.dumps(section)
    for name in "ABC":
        text = text.replace(f'"{name}"', json.dumps(family.path(name.lower())))
        message = message.replace(f"'{name}'", f"'{family.path(name.lower())}'")
    with pytest.raises(PlanError, match=re.escape(message)) as failure:
        make_plan(load_recipe(family.recipe(json.loads(text), base=True)))
    (problem,) = failure.value.problems
    assert problem.where == where


def test_a_token_that_all_have_is_said_to_have_no_effect(tmp_path):
    family = Family(tmp_path)
    section = {"tokens": {"</s>": {"source": family.path("b")}}}
    plan = make_plan(load_recipe(family.recipe(section)))
    assert [w.where for w in plan.warnings if w.code == "token-no-effect"] == [
        "tokenizer.tokens.</s>"
    ]


def test_an_embedding_that_is_not_as_the_config_says_is_refused(tmp_path):
    family = Family(tmp_path)
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps({**read_json(path), "vocab_size": 7}))
    with pytest.raises(
        CheckpointError, match=r"embed_tokens\.weight has \d+ rows, but config\.json"
    ):
        make_plan(load_recipe(family.recipe({"source": "union"})))


def test_without_a_tokenizer_section_vocabularies_have_to_agree(tmp_path):
    family = Family(tmp_path)
    recipe = family.recipe({}, base=True)
    del recipe["tokenizer"]
    with pytest.raises(PlanError, match=r"shapes differ: .*tokenizer: \{source: union\}"):
        make_plan(load_recipe(recipe))


def test_planning_imports_neither_torch_nor_transformers(tmp_path):
    family = Family(tmp_path)
    recipe = family.recipe({"source": "union"}, chat_template="chatml")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    code = (
        "import sys, json; from mergeconf import load_recipe, make_plan\n"
        "make_plan(load_recipe(json.load(open(sys.argv[1]))))\n"
        "print([n for n in ('torch', 'transformers', 'tokenizers', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "recipe.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# --- chat templates -------------------------------------------------------------------------------


def rendered(template: str, messages: list[dict[str, str]], **given: Any) -> str:
    """Render a template as transformers does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment.globals["raise_exception"] = raise_exception
    given = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, **given}
    return environment.from_string(template).render(messages=messages, **given)


WANTED = {
    "alpaca": "Be brief.\n\n### Instruction:\nWho are you?\n\n### Response:\nA merge.</s>\n\n"
    "### Instruction:\nOf what?\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
    "<|im_start|>assistant\n A merge. <|im_end|>\n<|im_start|>user\nOf what?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Who are you?\n"
    "[|assistant|] A merge. [|endofturn|]\n[|user|]Of what?\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA merge.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nOf what?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nWho are you? [/INST]  A merge. </s>"
    " [INST] Of what? [/INST]",
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_known_templates(name):
    assert rendered(TEMPLATES[name], CHAT) == WANTED[name]
    ending = rendered(TEMPLATES[name], CHAT[:3], add_generation_prompt=False)
    assert WANTED[name].startswith(ending)
    assert "A merge." in ending


def test_the_mistral_format_refuses_roles_out_of_turn():
    for chat in (CHAT[2:3], [CHAT[1], CHAT[1]], [CHAT[1], CHAT[0]]):
        with pytest.raises(ValueError, match="turns"):
            rendered(TEMPLATES["mistral"], chat)


@pytest.mark.parametrize("where", ["file", "config", "list", "nowhere"])
def test_a_template_is_where_transformers_looks_for_it(tmp_path, where):
    family = Family(tmp_path)
    file, config = tmp_path / "a" / "chat_template.jinja", tmp_path / "a" / "tokenizer_config.json"
    if where != "file":
        file.unlink()
    inside = {
        "config": "old {{ messages }}",
        "list": [{"name": "default", "template": "old"}, {"name": "tools", "template": "{{ t }}"}],
    }.get(where)
    if inside is not None:
        config.write_text(json.dumps({**read_json(config), "chat_template": inside}))
    recipe = family.recipe({}, chat_template="chatml")
    del recipe["tokenizer"]
    recipe["models"] = recipe["models"][:1]
    run(recipe, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    got = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert got == WANTED["chatml"]
    written = read_json(tmp_path / "out" / "tokenizer_config.json").get("chat_template")
    if where == "list":  # older versions read it there, and all of them the other templates
        assert written == [{"name": "default", "template": TEMPLATES["chatml"]}, inside[1]]
    else:
        assert written == (TEMPLATES["chatml"] if where == "config" else None)


def test_auto_takes_the_most_frequent_template(tmp_path):
    family = Family(tmp_path)
    recipe = family.recipe({"source": "union"}, chat_template="auto")
    run(recipe, tmp_path / "first")  # three different ones: that of the first model
    assert (tmp_path / "first" / "chat_template.jinja").read_text() == "{{ 'a' }}"
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ 'c' }}\n\n")
    run(recipe, tmp_path / "most")
    assert (tmp_path / "most" / "chat_template.jinja").read_text() == "{{ 'c' }}"
    for name in "abc":
        (tmp_path / name / "chat_template.jinja").unlink()
    plan = make_plan(load_recipe(recipe))
    assert [w.where for w in plan.warnings if w.code == "no-chat-template"] == ["chat_template"]
    assert "chat_template.jinja" not in plan.sidecars


def test_a_template_of_ones_own(tmp_path):
    family = Family(tmp_path)
    text = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    run(family.recipe({"source": "union"}, chat_template=text), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(CHAT[:2], tokenize=False) == "Be brief.;Who are you?;"


def test_a_template_without_a_tokenizer_is_an_error(tmp_path):
    write_llama(tmp_path / "a", 9)
    recipe = {"merge_method": "passthrough", "models": [str(tmp_path / "a")]}
    with pytest.raises(PlanError, match="chat_template: the output has no tokenizer"):
        make_plan(load_recipe({**recipe, "chat_template": "chatml"}))


# --- other architectures --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_can_be_added_to_models_of_any_architecture(tmp_path, kind):
    folders = [str(tmp_path / f"{variant}") for variant in range(2)]
    for variant, folder in enumerate(folders):
        shutil.copytree(made(kind, variant), folder)
        for path in made("llama", 0, tokenizer=True).glob("token*"):
            shutil.copy(path, folder)
    recipe = {
        "merge_method": "linear",
        "base_model": folders[0],
        "models": [{"model": folder, "parameters": {"weight": 0.5}} for folder in folders],
    }
    section = {
        "source": "base",
        "tokens": {"<new>": {"source": {"kind": "zero"}}},
        "pad_to_multiple_of": 64,
    }
    run(recipe, tmp_path / "plain")
    run({**recipe, "tokenizer": section}, tmp_path / "more")
    tokens = vocabulary_of(tmp_path / "more")
    count = tokens["<new>"]
    assert 40 < count == len(tokens) - 1
    plain, more = load_exactly(tmp_path / "plain"), load_exactly(tmp_path / "more")
    assert more.config.vocab_size == 64
    rows = more.get_input_embeddings().weight
    assert torch.equal(rows[:count], plain.get_input_embeddings().weight[:count])
    assert rows[count].abs().sum() == 0
    words = torch.arange(24).reshape(2, 12) % count
    arguments = {"input_ids": words}
    if more.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = words
    with torch.no_grad():
        got, want = more(**arguments).logits, plain(**arguments).logits
    assert got.shape[-1] == 64
    assert torch.allclose(got[..., :count], want[..., :count], atol=1e-6)
