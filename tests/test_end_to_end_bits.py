"""Whole runs: the same recipe and inputs give the same bytes, however the run goes.

Several methods at once, one a layer, over tensors of several tiles and files of several shards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from mergeconf.api import load_recipe, make_plan, merge
from mergeconf.execution import memory
from mergeconf.execution.local import Settings
from mergeconf.graph.describe import describe
from mergeconf.methods import all_methods
from support.command import call, end_of, files_of, model_of, spawn, start_slowly
from support.models import read_model, write_model

SIZES = {"embed": (300, 257), "w": (301, 256), "b": (97,), "one": (), "none": (0, 4)}


def parameters_for(name: str) -> dict[str, object]:
    """Return parameters that a method cannot do without, or that make it random."""
    parameters = all_methods()[name].parameters
    wanted = {"density": 0.5, "t": 0.3, "gamma": 0.05, "resample": "all"}
    return {key: value for key, value in wanted.items() if key in parameters}


METHODS = [
    name for name, method in all_methods().items()
    if method.base != "unused" and method.min_models <= 2 and (method.max_models or 2) >= 2
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Three models with a layer for every method that takes a base and two models."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    names = {"embed.weight": SIZES["embed"]}
    for layer in range(len(METHODS)):
        names |= {f"layers.{layer}.{part}": SIZES[part] for part in ("w", "b", "one", "none")}
    base = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    for label in "xab":
        tensors = {}
        for name, tensor in base.items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.02
            coin = torch.rand(tensor.shape, generator=generator) < 0.6
            changed = tensor if label == "x" else tensor + noise * coin
            tensors[name] = changed.to(torch.bfloat16)
        write_model(folder / label, tensors, config={"model_type": "none"})
    rules = [
        {"match": f"layers.{layer}.*", "merge_method": name, "parameters": parameters_for(name)}
        for layer, name in enumerate(METHODS)
    ]
    text = json.dumps({
        "merge_method": "linear", "base_model": "x", "models": ["a", "b"], "seed": 11,
        "rules": [{**rule, "parameters": rule["parameters"]} if rule["parameters"] else
                  {key: value for key, value in rule.items() if key != "parameters"}
                  for rule in rules],
        "output": {"shard_size": "1MB"},
    })  # fmt: skip
    (folder / "recipe.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def wanted(inputs, tmp_path_factory) -> dict[str, bytes]:
    """The output of an undisturbed run with one thread."""
    out = tmp_path_factory.mktemp("wanted") / "o"
    merge(inputs / "recipe.yaml", out, threads=1)
    files = files_of(out)
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    return files


def test_the_methods_that_take_part():
    assert len(METHODS) >= 10
    for name in ("ties", "dare_ties", "dare_linear", "parameter_selection", "task_arithmetic"):
        assert name in METHODS


@pytest.mark.parametrize("threads", [1, 2, 4, 13])
def test_threads(inputs, wanted, tmp_path, threads):
    merge(inputs / "recipe.yaml", tmp_path / "o", threads=threads)
    assert files_of(tmp_path / "o") == wanted


@pytest.mark.parametrize("budget", ["least", "64MiB", "1GB"])
def test_memory_budgets(inputs, wanted, tmp_path, budget):
    if budget == "least":
        refused = call("run", inputs / "recipe.yaml", "-o", tmp_path / "o", "--memory", "1kB")
        budget = refused.err.rpartition("--memory ")[2].strip()
    done = call("run", inputs / "recipe.yaml", "-o", tmp_path / "o", "--memory", budget)
    assert done.code == 0
    assert files_of(tmp_path / "o") == wanted


@pytest.mark.parametrize("tile", [256, 1000, 4097, 1 << 20])
def test_tiles_of_any_size(inputs, wanted, tmp_path, monkeypatch, tile):
    monkeypatch.setattr("mergeconf.api.fit_settings", lambda plan, *_: (
        Settings(2, tile, 3 * tile), memory.estimate(plan, Settings(2, tile, 3 * tile))
    ))  # fmt: skip
    merge(inputs / "recipe.yaml", tmp_path / "o")
    assert files_of(tmp_path / "o") == wanted


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_inputs_in_other_shards_and_another_order(inputs, wanted, tmp_path, shards):
    shutil.copy(inputs / "recipe.yaml", tmp_path)
    for label in "xab":
        tensors = read_model(inputs / label)
        order = list(tensors)
        random.Random(f"{label}{shards}").shuffle(order)
        config = json.loads((inputs / label / "config.json").read_text())
        write_model(tmp_path / label, tensors, shards=shards, order=order, config=config)
    merge(tmp_path / "recipe.yaml", tmp_path / "o")
    assert model_of(files_of(tmp_path / "o")) == model_of(wanted)


def test_inputs_elsewhere_and_through_links(inputs, wanted, tmp_path):
    home = tmp_path / "far" / "away"
    home.mkdir(parents=True)
    (home / "recipe.yaml").write_bytes((inputs / "recipe.yaml").read_bytes())
    shutil.copytree(inputs / "a", home / "a")
    (home / "b").symlink_to(inputs / "b")
    (home / "x").symlink_to(inputs / "x")
    merge(home / "recipe.yaml", tmp_path / "o")
    assert model_of(files_of(tmp_path / "o")) == model_of(wanted)


@pytest.mark.parametrize("seed", ["0", "1", "4294967295"])
def test_another_hash_seed_temporary_folder_umask_and_place(inputs, wanted, tmp_path, seed):
    (tmp_path / "tmp").mkdir()
    env = {
        "PYTHONHASHSEED": seed,
        "TMPDIR": str(tmp_path / "tmp"),
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
    }
    before = os.umask(0o077 if seed == "0" else 0o002)
    try:
        done = spawn("run", inputs / "recipe.yaml", "-o", "o", cwd=tmp_path, env=env)
    finally:
        os.umask(before)
    assert done.code == 0
    assert files_of(tmp_path / "o") == wanted
    assert not list((tmp_path / "tmp").iterdir())
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "o").iterdir()}
    assert modes == {0o600 if seed == "0" else 0o664}


def test_a_machine_without_vector_extensions(inputs, wanted, tmp_path):
    for number, level in enumerate(("default", "avx2")):
        env = {"ATEN_CPU_CAPABILITY": level, "NPY_DISABLE_CPU_FEATURES": ""}
        if level == "default":
            env["NPY_DISABLE_CPU_FEATURES"] = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX"
        out = tmp_path / f"o{number}"
        done = spawn("run", inputs / "recipe.yaml", "-o", out, env=env)
        assert done.code == 0
        assert files_of(out) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_and_other_settings_afterwards(inputs, wanted, tmp_path, number):
    out = tmp_path / "o"
    process = start_slowly(0.05, "run", inputs / "recipe.yaml", "-o", out, "--threads", "3")
    journal = tmp_path / "o.mergeconf-staging" / ".mergeconf-journal"
    while process.poll() is None and (
        not journal.exists() or journal.read_bytes().count(b"\n") < 8
    ):
        time.sleep(0.005)
    process.send_signal(number)
    end_of(process)
    assert not out.exists()
    report = merge(inputs / "recipe.yaml", out, threads=1, memory=1 << 30)
    assert report.resumed >= 7
    assert files_of(out) == wanted


def test_a_rule_for_one_tensor_changes_that_tensor_alone(inputs, tmp_path):
    data = json.loads((inputs / "recipe.yaml").read_text())
    stored = {}
    for number, rules in enumerate((
        [], [{"match": "layers.1.w", "merge_method": "dare_ties", "parameters": {"density": 0.7}}],
    )):  # fmt: skip
        data.update(
            merge_method="dare_ties", parameters={"density": 0.5}, rules=rules,
            base_model=str(inputs / "x"), models=[str(inputs / "a"), str(inputs / "b")],
        )  # fmt: skip
        merge(data, tmp_path / str(number), threads=2)
        stored[number] = read_model(tmp_path / str(number))
    changed = [name for name, tensor in stored[0].items() if not tensor.equal(stored[1][name])]
    assert changed == ["layers.1.w"]


def test_another_seed_changes_random_methods_and_no_others(inputs, wanted, tmp_path):
    text = (inputs / "recipe.yaml").read_text().replace('"seed": 11', '"seed": 12')
    for label in "xab":
        (tmp_path / label).symlink_to(inputs / label)
    (tmp_path / "recipe.yaml").write_text(text)
    merge(tmp_path / "recipe.yaml", tmp_path / "o")
    for name, content in wanted.items():
        (tmp_path / "before").mkdir(exist_ok=True)
        (tmp_path / "before" / name).write_bytes(content)
    before, after = read_model(tmp_path / "before"), read_model(tmp_path / "o")
    differing = {METHODS[int(name.split(".")[1])] for name in before
                 if not before[name].equal(after[name])}  # fmt: skip
    plan = make_plan(load_recipe(tmp_path / "recipe.yaml"))
    random_ones = {
        METHODS[int(tensor.name.split(".")[1])] for tensor in plan.tensors
        if tensor.name.endswith(".w") and "random" in "".join(describe(tensor.expression))
    }  # fmt: skip
    assert differing == random_ones
    assert {"dare_linear", "dare_ties", "parameter_selection"} <= differing
    assert not {"ties", "task_arithmetic"} & differing


def test_draws_of_a_tensor_do_not_depend_on_what_else_is_merged(inputs, tmp_path):
    recipe = {
        "merge_method": "parameter_selection", "seed": 3, "base_model": str(inputs / "x"),
        "models": [str(inputs / "a"), str(inputs / "b")],
    }  # fmt: skip
    merge(recipe, tmp_path / "all")
    merge({**recipe, "rules": [{"match": "layers.[0-4].*", "drop": True}]}, tmp_path / "some")
    whole, some = read_model(tmp_path / "all"), read_model(tmp_path / "some")
    assert 0 < len(some) < len(whole)
    assert all(tensor.equal(whole[name]) for name, tensor in some.items())
