"""A lock identifies a merge: it is canonical, finds every change, and runs again what it says."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from blake3 import blake3
from safetensors.torch import load_file, save_file

from mergeconf import api
from mergeconf.api import load_recipe, make_plan, run_plan, verify
from mergeconf.errors import CheckpointError, ExecutionError, LockError, OutputError
from mergeconf.lock import NAME, read_lock
from support.command import call, files_of
from support.models import read_model, write_model

LAYERS = 3
RECIPE: dict[str, Any] = {
    "merge_method": "dare_ties",
    "base_model": "models/base",
    "models": ["models/a", "models/b"],
    "parameters": {"density": 0.5, "weight": 0.6},
    "seed": 7,
    "rules": [{"match": "*.mlp.*", "merge_method": "linear", "parameters": {"weight": 0.5}}],
}


CACHE = Path("unset")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of digests of one's own, for the commands and for `merge` and `run_lock` here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("test_lock.CACHE", tmp_path / "mergeconf" / "digests")
    return tmp_path / "mergeconf"


def merge(recipe: Path, out: Path, **options: Any) -> api.RunReport:
    return api.merge(recipe, out, cache=CACHE, **options)


def run_lock(path: Path, out: Path) -> api.RunReport:
    return api.run_lock(path, out, cache=CACHE)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with three models and a recipe."""
    folder = tmp_path / "work"
    for index, name in enumerate(("base", "a", "b")):
        write(folder / "models" / name, index)
    save(folder, RECIPE)
    return folder


def write(folder: Path, seed: int, **more: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(40, 16, generator=generator)}
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "mlp.up_proj"):
            key = f"model.layers.{layer}.{part}.weight"
            tensors[key] = torch.randn(24, 16, generator=generator)
    tensors["model.norm.weight"] = torch.randn(16, generator=generator)
    kept = {key: value.to(torch.bfloat16) for key, value in {**tensors, **more}.items()}
    write_model(folder, kept, config={"num_hidden_layers": LAYERS, "model_type": "llama"})
    age(folder)


def age(folder: Path) -> None:
    """Make files older than the clock's grain, as files that people merge are."""
    for path in folder.rglob("*"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10 * 10**9))


def save(folder: Path, recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / name


def change(path: Path, name: str) -> None:
    """Flip the last bit of the first element of a tensor of a model."""
    tensors = load_file(path / "model.safetensors")
    tensors[name].view(torch.int16).view(-1)[0] ^= 1
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


# --- what a lock says ------------------------------------------------------------------------


def test_digests_are_those_of_the_definition(place: Path) -> None:
    """BLAKE3 over format, shape and bytes; of the whole over sorted names and digests."""
    merge(place / "recipe.yaml", place / "out")
    data = json.loads((place / "out" / NAME).read_text())
    digests = {}
    for name, tensor in read_model(place / "out").items():
        head = f"mergeconf tensor bfloat16 {list(tensor.shape)}\n".encode()
        raw = tensor.view(torch.uint8).numpy().tobytes()
        digests[name] = "blake3:" + blake3(head + raw).hexdigest()
    assert {n: item["digest"] for n, item in data["output"]["tensors"].items()} == digests
    listed = json.dumps([[n, digests[n]] for n in sorted(digests)], separators=(",", ":"))
    assert data["output"]["digest"] == "blake3:" + blake3(listed.encode()).hexdigest()
    for name, digest in data["output"]["files"].items():
        content = (place / "out" / name).read_bytes()
        assert digest == "blake3:" + blake3(content).hexdigest()
    for item in data["inputs"]:
        assert item["path"] == item["model"]
        for name, digest in item["tensors"].items():
            tensor = read_model(place / item["path"])[name]
            head = f"mergeconf tensor bfloat16 {list(tensor.shape)}\n".encode()
            raw = tensor.view(torch.uint8).numpy().tobytes()
            assert digest == "blake3:" + blake3(head + raw).hexdigest()


def test_lock_is_the_same_file_however_the_run_went(place: Path) -> None:
    for threads, memory in ((1, None), (2, None), (2, 64 << 20)):
        plan = make_plan(load_recipe(place / "recipe.yaml"))
        run_plan(plan, place / f"out-{threads}-{memory}", threads=threads, memory=memory)
    texts = {(path / NAME).read_bytes() for path in place.glob("out-*")}
    assert len(texts) == 1


def test_digest_does_not_depend_on_the_arrangement_in_files(place: Path) -> None:
    one = merge(place / "recipe.yaml", place / "one").lock
    save(place, {**RECIPE, "output": {"shard_size": 2000}})
    many = merge(place / "recipe.yaml", place / "many").lock
    assert len(list((place / "many").glob("*.safetensors"))) > 3
    assert one.output_digest == many.output_digest
    assert one.plan_digest == many.plan_digest


def test_interrupted_run_gives_the_same_lock(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = merge(place / "recipe.yaml", place / "whole").lock.text()
    from mergeconf.execution.local import LocalExecutor

    original = LocalExecutor.run

    def run_some(self: LocalExecutor, tensors: Any) -> None:
        original(self, tensors[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalExecutor, "run", run_some)
    with pytest.raises(Exception, match="interrupted"):
        merge(place / "recipe.yaml", place / "out")
    monkeypatch.undo()
    monkeypatch.setattr("test_lock.CACHE", place / "other-cache")
    report = merge(place / "recipe.yaml", place / "out")
    assert report.resumed == 4
    assert report.lock.text() == want


def test_defaults_are_spelled_out(place: Path) -> None:
    lock = merge(place / "recipe.yaml", place / "out").lock
    assert lock.resolved["defaults"]["dare_ties"]["normalize"] is False
    assert lock.resolved["seed"] == 7
    assert lock.resolved["rules"][0]["matcher"] == {"match": "*.mlp.*"}


def test_equal_recipes_written_otherwise_have_one_digest(place: Path) -> None:
    """Comments, order of keys, the long form of a model: the same recipe."""
    one = merge(place / "recipe.yaml", place / "one").lock
    text = (place / "recipe.yaml").read_text().replace("- models/a", "- model: models/a  # first")
    (place / "other.yaml").write_text("# another text\n" + text)
    two = merge(place / "other.yaml", place / "two").lock
    assert one.recipe_text != two.recipe_text
    assert one.resolved == two.resolved


# --- verify ----------------------------------------------------------------------------------


def said(place: Path, **options: Any) -> str:
    return "\n".join(str(problem) for problem in verify(place / "out", **options).problems)


def test_sound_output_is_verified(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    found = verify(place / "out", recompute=None)
    assert not found.problems
    assert found.tensors == found.recomputed == 8
    assert verify(place / "out", recompute=3).recomputed == 3


@pytest.mark.parametrize("at", [0, 1, 500, -1])
def test_every_flipped_bit_is_found_and_named(place: Path, at: int) -> None:
    merge(place / "recipe.yaml", place / "out")
    path = place / "out" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + at if at >= 0 else at] ^= 16
    path.write_bytes(raw)
    tensors = [name for name in read_model(place / "out") if name in said(place)]
    assert len(tensors) == 1


def test_swapped_edited_missing_and_added(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    out = place / "out"
    original = files_of(out)

    def restore() -> None:
        for path in out.iterdir():
            path.unlink()
        for name, content in original.items():
            (out / name).write_bytes(content)

    (out / "recipe.yaml").write_text("merge_method: linear\n")
    assert said(place).startswith("recipe.yaml: is not the file that the run wrote")
    (out / "config.json").unlink()
    assert "config.json: no such file" in said(place)
    restore()
    shutil.copy(place / "models" / "a" / "model.safetensors", out)
    assert said(place).count("has other bytes than the lock says") == 8
    restore()
    tensors = load_file(out / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, out / "model.safetensors")
    assert "missing: model.norm.weight" in said(place)
    assert "does not name: extra.weight" in said(place)
    restore()
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, out / "model.safetensors")
    assert "is float32 [16], and bfloat16 [16] in the lock" in said(place)
    restore()
    raw = original["model.safetensors"]
    (out / "model.safetensors").write_bytes(raw[:-5])
    assert "model.safetensors" in said(place)


@pytest.mark.parametrize("what", ["digest", "text", "seed", "json", "format", "empty"])
def test_edited_lock_is_refused(place: Path, what: str) -> None:
    merge(place / "recipe.yaml", place / "out")
    path = place / "out" / NAME
    text = path.read_text()
    edited = {
        "digest": text.replace("blake3:", "blake3:0", 1),
        "text": text.replace("dare_ties", "dare_linear", 1),
        "seed": text.replace('"seed": 7', '"seed": 8'),
        "json": text[:-20],
        "format": text.replace('"mergeconf_lock": 1', '"mergeconf_lock": 9'),
        "empty": "",
    }[what]
    assert edited != text
    path.write_text(edited)
    with pytest.raises(LockError) as caught:
        verify(place / "out")
    assert str(path) in str(caught.value)


def test_a_lock_that_was_made_up_is_found_by_computing_again(place: Path) -> None:
    """Weights that were changed together with a lock that says so."""
    from dataclasses import replace

    merge(place / "recipe.yaml", place / "out")
    change(place / "out", "model.norm.weight")
    lock = read_lock(place / "out" / NAME)
    tensor = read_model(place / "out")["model.norm.weight"]
    head = f"mergeconf tensor bfloat16 {list(tensor.shape)}\n".encode()
    digest = "blake3:" + blake3(head + tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    forged = {**lock.tensors, "model.norm.weight": replace(
        lock.tensors["model.norm.weight"], digest=digest)}  # fmt: skip
    (place / "out" / NAME).write_text(replace(lock, tensors=forged).text())
    assert said(place) == ""
    assert said(place, recompute=None).startswith("model.norm.weight: computed again")


# --- run a lock ------------------------------------------------------------------------------


def test_lock_runs_again(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    (place / "recipe.yaml").unlink()
    report = run_lock(place / "out" / NAME, place / "again")
    assert report.lock.text() == (place / "out" / NAME).read_text()
    assert files_of(place / "again") == files_of(place / "out")


def test_lock_runs_where_the_whole_tree_was_moved(place: Path, tmp_path: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    want = files_of(place / "out")
    place.rename(tmp_path / "elsewhere")
    run_lock(tmp_path / "elsewhere" / "out" / NAME, tmp_path / "elsewhere" / "again")
    assert files_of(tmp_path / "elsewhere" / "again") == want


def test_lock_holds_the_other_recipes_too(place: Path) -> None:
    save(place, {"merge_method": "linear", "models": ["models/a", "models/b"],
                 "parameters": {"weight": 0.5}}, "inner.yaml")  # fmt: skip
    save(place, {**RECIPE, "models": ["models/a", {"recipe": "inner.yaml"}]})
    merge(place / "recipe.yaml", place / "out")
    (place / "inner.yaml").write_text("merge_method: passthrough\nmodels: [models/a]\n")
    run_lock(place / "out" / NAME, place / "again")
    assert files_of(place / "again") == files_of(place / "out")


@pytest.mark.parametrize("cached", [True, False])
def test_changed_input_is_named_before_anything_is_merged(
    place: Path, cached: bool, own_cache: Path
) -> None:
    merge(place / "recipe.yaml", place / "out")
    if not cached:
        shutil.rmtree(own_cache)
    change(place / "models" / "b", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(LockError) as caught:
        run_lock(place / "out" / NAME, place / "again")
    (problem,) = caught.value.problems
    assert problem.where == "models/b"
    assert "model.layers.1.mlp.up_proj.weight" in problem.message
    assert not (place / "again").exists()


def test_other_files_are_told_without_reading_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeconf.storage.read_files import ReadFiles

    merge(place / "recipe.yaml", place / "out")
    write(place / "models" / "b", 5, another=torch.ones(3))
    monkeypatch.setattr(ReadFiles, "read_into", lambda *args: pytest.fail("weights are read"))
    with pytest.raises(LockError, match="bytes long in the lock") as caught:
        run_lock(place / "out" / NAME, place / "again")
    assert caught.value.problems[0].where == "models/b"
    write(place / "models" / "b", 2)
    shutil.rmtree(place / "models" / "a")
    with pytest.raises(CheckpointError, match="models/a"):
        run_lock(place / "out" / NAME, place / "again")


def test_config_that_changes_the_plan_is_told(place: Path) -> None:
    """The inputs' weights are the same, but the config ties what was not tied."""
    for name in ("base", "a", "b"):
        head = torch.ones(40, 16)
        write(place / "models" / name, 1, **{"lm_head.weight": head})
    merge(place / "recipe.yaml", place / "out")
    config = place / "models" / "base" / "config.json"
    for name in ("base", "a", "b"):
        config = place / "models" / name / "config.json"
        content = {**json.loads(config.read_text()), "tie_word_embeddings": True}
        config.write_text(json.dumps(content))
    with pytest.raises(LockError, match="planned otherwise"):
        run_lock(place / "out" / NAME, place / "again")


# --- nothing twice ---------------------------------------------------------------------------


def test_same_run_again_does_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(place / "recipe.yaml", place / "out")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    from mergeconf.storage.read_files import ReadFiles

    monkeypatch.setattr(ReadFiles, "read_into", lambda *args: pytest.fail("weights are read"))
    report = merge(place / "recipe.yaml", place / "out")
    assert report.unchanged
    assert before == {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    out = call("run", place / "recipe.yaml", "-o", place / "out")
    assert "there already" in out.out
    assert out.code == 0


@pytest.mark.parametrize("what", ["input", "recipe", "config", "weights gone", "no lock"])
def test_output_that_is_not_the_same_is_not_taken_for_it(place: Path, what: str) -> None:
    merge(place / "recipe.yaml", place / "out")
    if what == "input":
        change(place / "models" / "a", "model.norm.weight")
    elif what == "recipe":
        save(place, {**RECIPE, "seed": 8})
    elif what == "config":
        (place / "out" / "config.json").write_text("{}")
    elif what == "weights gone":
        (place / "out" / "model.safetensors").unlink()
    else:
        (place / "out" / NAME).unlink()
    with pytest.raises(OutputError):
        merge(place / "recipe.yaml", place / "out")


UPDATES: dict[str, tuple[dict[str, Any], int]] = {
    "a rule": ({"rules": []}, 5),
    "a weight of some": (
        {
            "parameters": {
                "density": 0.5,
                "weight": [{"filter": "norm", "value": 0.1}, {"value": 0.6}],
            }
        },
        7,
    ),
    "the seed": ({"seed": 9}, 3),
    "the arrangement": ({"output": {"shard_size": 3000}}, 8),
    "everything": ({"merge_method": "ties", "rules": []}, 0),
}


@pytest.mark.parametrize("what", UPDATES)
def test_update_computes_what_changed_and_gives_a_fresh_runs_bits(place: Path, what: str) -> None:
    merge(place / "recipe.yaml", place / "out")
    changes, kept = UPDATES[what]
    save(place, {**RECIPE, **changes})
    report = merge(place / "recipe.yaml", place / "out", update=True)
    assert report.reused == kept
    merge(place / "recipe.yaml", place / "fresh")
    assert files_of(place / "out") == files_of(place / "fresh")
    assert not verify(place / "out", recompute=None).problems


def test_update_after_an_input_changed(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    change(place / "models" / "a", "model.norm.weight")
    age(place / "models" / "a")
    report = merge(place / "recipe.yaml", place / "out", update=True)
    assert report.reused == 7
    merge(place / "recipe.yaml", place / "fresh")
    assert files_of(place / "out") == files_of(place / "fresh")


def test_update_does_not_carry_damage_on(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    change(place / "out", "model.norm.weight")
    save(place, {**RECIPE, "output": {"shard_size": 3000}})
    report = merge(place / "recipe.yaml", place / "out", update=True)
    assert report.reused == 7
    merge(place / "recipe.yaml", place / "fresh")
    assert files_of(place / "out") == files_of(place / "fresh")


def test_update_of_what_mergeconf_did_not_make_is_refused(place: Path) -> None:
    write(place / "out", 3)
    with pytest.raises(OutputError, match="nothing known that could stay"):
        merge(place / "recipe.yaml", place / "out", update=True)
    merge(place / "recipe.yaml", place / "new", update=True)


def test_a_failing_update_leaves_what_was_there(place: Path) -> None:
    merge(place / "recipe.yaml", place / "out")
    before = files_of(place / "out")
    save(place, {**RECIPE, "parameters": {"density": 0.5, "weight": 3e38}})
    with pytest.raises(ExecutionError):
        merge(place / "recipe.yaml", place / "out", update=True)
    assert files_of(place / "out") == before


# --- the cache -------------------------------------------------------------------------------


def test_cache_is_believed_for_files_that_did_not_change_only(
    place: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merge(place / "recipe.yaml", place / "out").lock
    assert len(list(own_cache.rglob("*.json"))) == 3
    change(place / "models" / "a", "model.norm.weight")
    second = merge(place / "recipe.yaml", place / "other").lock
    assert first.inputs[1].tensors != second.inputs[1].tensors
    for path in own_cache.rglob("*.json"):
        path.write_text("{damaged")
    third = merge(place / "recipe.yaml", place / "third").lock
    assert third.inputs == second.inputs


def test_young_files_are_not_cached(place: Path, own_cache: Path) -> None:
    """A file that changes twice within the clock's grain could pass for unchanged."""
    for name in ("base", "a", "b"):
        os.utime(place / "models" / name / "model.safetensors", ns=(time.time_ns(),) * 2)
    merge(place / "recipe.yaml", place / "out")
    assert not list(own_cache.rglob("*.json"))


def test_a_cache_that_cannot_be_written_is_no_harm(place: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    merge(place / "recipe.yaml", place / "out")
    assert not verify(place / "out").problems


# --- the command line ------------------------------------------------------------------------


def test_commands(place: Path) -> None:
    assert call("run", place / "recipe.yaml", "-o", place / "out").code == 0
    done = call("verify", place / "out", "--recompute", "2")
    assert (done.code, "recomputed  2 tensors" in done.out) == (0, True)
    done = call("run", place / "out" / NAME, "-o", place / "again")
    assert (done.code, done.err) == (0, "")
    done = call("run", place / "out" / NAME)
    assert "there already" in done.out
    save(place, {**RECIPE, "seed": 3})
    done = call("run", place / "recipe.yaml", "-o", place / "out")
    assert done.code == 2
    assert "--update" in done.err
    done = call("run", place / "recipe.yaml", "-o", place / "out", "--update")
    assert "reused" in done.out
    change(place / "out", "model.norm.weight")
    done = call("verify", place / "out")
    assert done.code == 2
    assert "model.norm.weight: has other bytes" in done.err
    assert call("verify", place / "out", "--recompute", "some").code == 2
    done = call("verify", place / "models" / "a")
    assert done.code == 2
    assert "mergeconf.lock: cannot be read" in done.err
