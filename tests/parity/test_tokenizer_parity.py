"""Merges with a `tokenizer` section, by mergekit 0.1.5 and by mergeconf, token by token.

Skipped unless `MERGECONF_MERGEKIT` names mergekit's environment. mergekit numbers the tokens of a
union otherwise in every run, so rows are compared by their tokens' text.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken

from mergeconf import load_recipe, make_plan, run_plan
from mergeconf.checkpoint.vocabulary import read_vocabulary
from parity.test_methods_parity import mergekit_python
from support.vocabularies import (
    OTHER_TEXT,
    make_tokenizer,
    read_json,
    save_tokenizer,
    write_llama,
)

pytestmark = pytest.mark.parity
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
WHOLE: dict[str, dict[str, Any]] = {
    "union": {"source": "union"},
    "base": {"source": "base"},
    "model": {"source": "b"},
    "padded": {"source": "union", "pad_to_multiple_of": 64},
    "tokens": {
        "source": "union",
        "tokens": {
            "<|im_start|>": {"source": "b"},
            "<think>": {"source": {"kind": "zero"}},
            "<new>": {"source": {"kind": "model_token", "model": "c", "token": "</s>"}},
            "<other>": {"source": {"kind": "model_token", "model": "b", "token_id": 7}},
            "</s>": {"source": "c", "force": True},
        },
    },
    "tokens-base": {"source": "base", "tokens": {"</s>": {"source": "c", "force": True}}},
}
METHODS: dict[str, tuple[str, bool, dict[str, list[float]]]] = {
    "linear": ("linear", False, {"weight": [0.5, 0.3, 0.2]}),
    "task": ("task_arithmetic", True, {"weight": [0.5, 0.4]}),
    "ties": ("ties", True, {"weight": [0.5, 0.4], "density": [1.0, 1.0]}),
}


def write_models(folder: Path, kind: str, *, tied: tuple[bool, bool, bool]) -> None:
    """Write a base and two models whose tokenizers differ."""
    tokenizers = [make_tokenizer(kind), make_tokenizer(kind, OTHER_TEXT), make_tokenizer(kind)]
    tokenizers[1].add_special_tokens([AddedToken("<|im_start|>", special=True)])
    for each in tokenizers[1:]:
        each.add_tokens(["<think>"])
    tokenizers[2].add_tokens(["<|im_end|>"])
    for seed, (name, each) in enumerate(zip(("a", "b", "c"), tokenizers, strict=True)):
        padding = 5 if name == "a" else 0  # rows that belong to no token
        save_tokenizer(folder / name, each)
        write_llama(folder / name, each.get_vocab_size() + padding, seed=seed, tied=tied[seed])


def recipe_of(folder: Path, method: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with whole paths."""
    name, has_base, parameters = METHODS[method]
    names = ("b", "c") if has_base else ("a", "b", "c")
    models = [
        {"model": str(folder / model), "parameters": {k: v[i] for k, v in parameters.items()}}
        for i, model in enumerate(names)
    ]
    text = yaml.safe_dump(section)
    for model in ("a", "b", "c"):
        for key in ("source", "model"):
            text = text.replace(f"{key}: {model}\n", f"{key}: {folder / model}\n")
    recipe = {"merge_method": name, "models": models, "tokenizer": yaml.safe_load(text)}
    if has_base:
        recipe["base_model"] = str(folder / "a")
    return {**recipe, "dtype": "float32"}


TIES = {
    "untied": (False, False, False),
    "tied": (True, True, True),
    "mixed": (True, False, False),
}
CASES = [
    (kind, ties, method, section)
    for kind, ties in (
        ("bytes", "untied"), ("unigram", "untied"), ("wordpiece", "mixed"), ("bytes", "tied")
    )
    for method in METHODS
    for section in WHOLE
    # of models without a base, mergekit takes any for one
    if METHODS[method][1] or not section.endswith("base")
]  # fmt: skip


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let mergekit compute every case, in one process, and return the folder of results."""
    python = mergekit_python()
    if python is None:
        pytest.skip("set MERGECONF_MERGEKIT to an environment that holds mergekit 0.1.5")
    folder = tmp_path_factory.mktemp("mergekit")
    for kind, ties in {(kind, ties) for kind, ties, *_ in CASES}:
        write_models(folder / f"models-{kind}-{ties}", kind, tied=TIES[ties])
    for kind, ties, method, section in CASES:
        recipe = recipe_of(folder / f"models-{kind}-{ties}", method, WHOLE[section])
        path = folder / f"{kind}-{ties}-{method}-{section}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    worker = Path(__file__).with_name("mergekit_worker.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(
        [str(python), str(worker), str(folder)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.mark.parametrize(("kind", "ties", "method", "section"), CASES)
def test_embeddings_by_token(
    merged: Path, tmp_path: Path, kind: str, ties: str, method: str, section: str
) -> None:
    theirs = merged / f"{kind}-{ties}-{method}-{section}"
    failure = theirs.with_suffix(".error")
    assert not failure.exists(), failure.read_text()
    ours = tmp_path / "merged"
    run_plan(make_plan(load_recipe(theirs.with_suffix(".yaml"))), ours)
    config = read_json(ours / "config.json")
    assert config["vocab_size"] == read_json(theirs / "config.json")["vocab_size"]
    tokens = [
        read_vocabulary({path.name: path for path in folder.iterdir()}) for folder in (ours, theirs)
    ]
    assert tokens[0] is not None and tokens[1] is not None
    own, other = tokens[0].tokens, tokens[1].tokens
    assert own.keys() == other.keys()
    got, want = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    # mergekit writes a head where the config ties it, too
    assert got.keys() == want.keys() - ({"lm_head.weight"} if ties == "tied" else set())
    order = torch.tensor([other[token] for token in own])
    here = torch.tensor(list(own.values()))
    for name in set(TABLES) & got.keys():
        assert got[name].shape == want[name].shape
        assert torch.allclose(got[name][here], want[name][order], rtol=0, atol=1e-6)
        padding = got[name][len(own) :], want[name][len(own) :]
        assert torch.allclose(*padding, rtol=0, atol=1e-6)
    for name in got.keys() - set(TABLES):
        assert torch.allclose(got[name], want[name], rtol=0, atol=1e-6)
