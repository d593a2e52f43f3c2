"""Models of many architectures merge by name: each is made small, merged, loaded and run.

No part of the package knows an architecture. What shows that nothing is lost is transformers: it
must load every result without a missing, a left-over or a newly made weight.
"""

import json
import re

import pytest
import torch

from mergeconf.api import merge
from support.families import FAMILIES
from support.models import read_model
from support.small_models import load, made, run, write_on

QUICK = (
    "llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "mixtral",
    "qwen3-moe", "gpt-oss", "deepseek-v3", "qwen3_5", "mamba2", "bert-mlm", "modernbert", "t5",
    "whisper", "clip", "llava", "qwen2_5-vl",
)  # fmt: skip
"""Families of the default suite; the others are slow together."""
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES
]  # fmt: skip
WEIGHTS = (0.5, 0.3, 0.2)


def recipe_of(method, name):
    """Return a recipe that merges a family's models by a method, with parameters of its own."""
    base, one, two = (str(made(name, variant)) for variant in range(3))
    match method:
        case "linear":
            models = zip((base, one, two), WEIGHTS, strict=True)
            return {"models": [{"model": m, "parameters": {"weight": w}} for m, w in models]}
        case "slerp":
            return {"base_model": base, "models": [base, one], "parameters": {"t": [0.2, 0.8]}}
        case "parameter_selection":
            return {"base_model": base, "models": [one, two], "seed": 3}
    parameters = {"density": 0.5, "weight": 0.6}
    return {"base_model": base, "models": [one, two], "parameters": parameters, "seed": 3}


def test_the_families():
    assert len(FAMILIES) > 100
    assert set(QUICK) < set(FAMILIES)


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_ties", "parameter_selection"])
@pytest.mark.parametrize("name", NAMES)
def test_a_merge_loads_and_runs(name, method, tmp_path):
    merge({"merge_method": method, **recipe_of(method, name)}, tmp_path / "out")
    inputs = [read_model(made(name, variant)) for variant in range(3)]
    output = read_model(tmp_path / "out")
    assert {k: (v.shape, v.dtype) for k, v in output.items()} == {
        k: (v.shape, v.dtype) for k, v in inputs[0].items()
    }
    if method == "parameter_selection":
        for key, value in output.items():
            from_models = (value == inputs[1][key]) | (value == inputs[2][key])
            assert (from_models | (value == inputs[0][key])).all(), key
            constant = torch.equal(inputs[0][key], inputs[1][key])  # a buffer
            assert value.numel() < 64 or constant or not torch.equal(value, inputs[0][key]), key
    result = load(name, tmp_path / "out")
    run(name, result)
    if method == "parameter_selection":
        write_on(name, result)


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_merge_is_the_mean_of_the_loaded_parameters(name, tmp_path):
    merge({"merge_method": "linear", **recipe_of("linear", name)}, tmp_path / "out")
    result = load(name, tmp_path / "out")
    models = [load(name, made(name, variant)) for variant in range(3)]
    assert_is_mean(name, result, models, WEIGHTS)
    assert [value.shape for value in run(name, result)] == [
        value.shape for value in run(name, models[0])
    ]
    for file in ("config.json", "generation_config.json"):
        path = made(name, 0) / file
        assert path.exists() == (tmp_path / "out" / file).exists()
        if path.exists():
            assert json.loads((tmp_path / "out" / file).read_text()) == json.loads(path.read_text())


def assert_is_mean(name, result, models, weights, keys=None):
    """Compare parameters and buffers with the mean in float64, but for one rounding."""
    states = [model.state_dict() for model in models]
    state = result.state_dict()
    assert state.keys() == states[0].keys()
    file = getattr(torch, FAMILIES[name].dtype)
    for key in state if keys is None else keys:
        values = [each[key] for each in states]
        if not values[0].is_floating_point():
            assert torch.equal(state[key], values[0]), key
            continue
        wanted = sum(w * value.double() for w, value in zip(weights, values, strict=True))
        rounding = max(torch.finfo(file).eps, torch.finfo(values[0].dtype).eps) * 0.505
        largest = max(value.abs().max().item() for value in values)
        torch.testing.assert_close(
            state[key].double(), wanted, rtol=rounding, atol=largest * 2**-22,
            msg=lambda text, key=key: f"{key}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("name", [p for p in NAMES if FAMILIES[p.values[0]].stack])
def test_a_gradient_follows_the_layers_of_each_stack(name, tmp_path):
    """Weights from 1 and 0 to 0 and 1 over the layers; outside, the first: the first model."""
    one, two = (made(name, variant) for variant in range(2))
    weights = {str(one): [1, 0], str(two): [0, 1]}
    models = [{"model": model, "parameters": {"weight": w}} for model, w in weights.items()]
    merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    first, second, output = read_model(one), read_model(two), read_model(tmp_path / "out")
    layer = re.compile(rf"{re.escape(FAMILIES[name].stack)}\.(\d+)\.")
    numbers = {key: int(found[1]) for key in first if (found := layer.match(key))}
    last = max(numbers.values())
    assert set(numbers.values()) == set(range(last + 1))
    for key, value in output.items():
        if key not in numbers:
            if not any(part.isdigit() for part in key.split(".")):
                assert torch.equal(value, first[key]), key
            continue
        share = numbers[key] / last
        wanted = (1 - share) * first[key].double() + share * second[key].double()
        rounding = torch.finfo(value.dtype).eps * 0.505
        torch.testing.assert_close(value.double(), wanted, rtol=rounding, atol=1e-6)
    run(name, load(name, tmp_path / "out"))
