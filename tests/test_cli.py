"""The command line: every verb, exit codes, where output goes, interruption, what a run leaves."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from mergeconf.methods import all_methods
from support.command import ROOT, call, end_of, environment, files_of, model_of, spawn, start_slowly
from support.models import (
    CAUSAL,
    KINDS,
    TEMPLATE,
    llama_like,
    load_exactly,
    made,
    read_model,
    write_model,
)

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
KILLS = 12
"""Runs killed at random moments in the default suite."""
KILLS_LONG = 200
"""The same with `-m faults`."""


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of three small models, with a random method."""
    for seed, name in enumerate("xab"):
        config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
        write_model(tmp_path / name, llama_like(seed, layers=12), config=config)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: dare_ties\nbase_model: x\nmodels: [a, b]\nparameters: {density: 0.5}\n"
        "seed: 5\nrules:\n  - {match: '*.layers.3.*', merge_method: linear}\n"
    )
    return path


# --- verbs ------------------------------------------------------------------------------------


def test_check_plan_explain_and_run_of_every_recipe(tmp_path):
    assert len(RECIPES) >= 2
    for path in RECIPES:
        done = call("check", path)
        assert done.code == 0
        assert re.search(r"sound: \w+, \d models, 39 tensors, 448,992 parameters\n$", done.out)
        done = call("plan", path)
        assert done.code == 0
        for words in ("models/order-4", "39 tensors", "written", "peak memory", "free here"):
            assert words in done.out
        plan = json.loads(call("plan", path, "--json").out)
        assert len(plan["tensors"]) == 39
        done = call("explain", path, "model.norm.weight")
        assert done.code == 0
        for words in ("model.norm.weight: [96] bfloat16", "model.safetensors", "expression",
                      str(path)):  # fmt: skip
            assert words in done.out
        done = call("run", path, "-o", tmp_path / path.stem)
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / path.stem / "model.safetensors").exists()


def test_what_a_run_says(tmp_path):
    done = call("run", QUICKSTART, "-o", tmp_path / "o")
    for words in ("4 models with parameter_selection, seed 42", "models/base", "models/order-1, ",
                  "39 tensors", "drawn again", "which no model changed", "read", "written",
                  "time", "peak memory", str(tmp_path / "o"), "next:",
                  "mergeconf explain"):  # fmt: skip
        assert words in done.out, words


def test_the_shares_that_a_run_tells_are_those_of_the_models(tmp_path):
    models = [read_model(ROOT / "recipes/models" / name) for name in
              ("base", "order-1", "order-2", "order-3", "order-4")]  # fmt: skip
    base, *others = models
    total = sum(tensor.numel() for tensor in base.values())
    equal = [sum(int((other[n] == t).sum()) for n, t in base.items()) / total for other in others]
    nowhere = sum(
        int(sum((other[n] == t).int() for other in others).eq(4).sum()) for n, t in base.items()
    )
    done = call("run", QUICKSTART, "-o", tmp_path / "o")
    shares = ", ".join(f"{share:.2%}" for share in equal)
    assert f"{sum(equal) / 4:.2%} of the models' elements ({shares})" in done.out
    assert f"{nowhere / total:.2%} of the elements, which no model changed" in done.out


def test_what_a_run_says_of_rules_and_what_was_left_out(tmp_path, recipe):
    recipe.write_text(recipe.read_text() + "  - {match: lm_head.weight, drop: true}\n")
    done = call("run", recipe, "-o", tmp_path / "o")
    assert "rules.0  match '*.layers.3.*': 5 tensors" in done.out
    assert "rules.1  match 'lm_head.weight': 1 tensors" in done.out
    assert "1 left out" in done.out
    assert "2 models with dare_ties, seed 5" in done.out


def test_a_listed_base_counts_where_the_method_merges_it(tmp_path, recipe):
    recipe.write_text("merge_method: linear\nbase_model: x\nmodels: [x, a]\n")
    assert "2 models with linear" in call("run", recipe, "-o", tmp_path / "o").out
    recipe.write_text("merge_method: ties\nbase_model: x\nmodels: [x, a]\n")
    assert "1 model with ties" in call("run", recipe, "-o", tmp_path / "p").out


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_next_command_that_a_run_names_works(tmp_path, kind):
    recipe = tmp_path / "a recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{made(kind, 1)}, {made(kind, 2)}]\n")
    done = call("run", recipe, "-o", tmp_path / 'the "out" folder')
    first, second = done.out.partition("next:\n")[2].strip().splitlines()
    program, *arguments = shlex.split(first)
    assert program == "python"
    loaded = subprocess.run([sys.executable, *arguments], capture_output=True, env=environment())
    assert loaded.returncode == 0, loaded.stderr
    program, *arguments = shlex.split(second)
    assert call(*arguments).code == 0


def test_methods_lists_all_and_explains_one():
    listing = call("methods").out
    for method in all_methods().values():
        assert re.search(rf"^  {method.name} +{re.escape(method.summary)}$", listing, re.M)
        explained = call("methods", method.name).out
        assert method.description in explained
        for name in method.parameters:
            assert re.search(rf"^  {name} ", explained, re.M)
    done = call("methods", "tise")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'ties'?" in done.err


def test_explain_names_the_rule_and_the_line_of_every_parameter(recipe):
    done = call("explain", recipe, "model.layers.0.mlp.up_proj.weight")
    assert "no rule fits" in done.out
    assert f"parameters.density ({recipe}:4:23)" in done.out
    done = call("explain", recipe, "model.layers.3.mlp.up_proj.weight")
    assert f"rules.0: match '*.layers.3.*' ({recipe}:7:5)" in done.out
    assert "merge_method linear" in done.out
    done = call("explain", recipe, "model.layers.3.mlp.up_proj.wieght")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'model.layers.3.mlp.up_proj.weight'?" in done.err


def test_explain_says_what_is_left_out_and_why(recipe):
    recipe.write_text(recipe.read_text() + "  - {match: lm_head.weight, drop: true}\n")
    done = call("explain", recipe, "lm_head.weight")
    assert (done.code, done.out) == (0, "lm_head.weight: left out of the output: rules.1\n")


def test_the_schema_fits_the_recipes_and_not_a_misspelled_one():
    schema = json.loads(call("schema").out)
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.check_schema(schema)
    for path in RECIPES:
        data = yaml.safe_load(path.read_text())
        validator.validate(data)
        for bad in ({"merge_methd": "ties"}, {"merge_method": "tise"}, {"dtype": "bf17"}):
            assert not validator.is_valid({**data, **bad})


@pytest.mark.parametrize("verb", ["run", "check", "plan", "explain", "methods", "schema"])
def test_every_verb_has_help(verb):
    done = call(verb, "--help")
    assert done.code == 0
    assert "Usage: mergeconf" in done.out
    assert verb in call("--help").out


def test_as_a_module_and_by_version():
    from mergeconf import __version__

    done = spawn("--version")
    assert (done.code, done.out, done.err) == (0, f"mergeconf {__version__}\n", "")


START = """
import sys
from mergeconf.cli import main
sys.argv = ["mergeconf", *sys.argv[1:]]
try:
    main()
finally:
    found = {"torch", "transformers", "jsonschema", "rich.progress"} & set(sys.modules)
    print("IMPORTED", *found, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ("--help",), ("run", "--help"), ("methods",), ("methods", "ties"), ("check", QUICKSTART),
        ("plan", QUICKSTART), ("explain", QUICKSTART, "lm_head.weight"), ("schema",),
        ("check", "missing.yaml"),
    ],
    ids=lambda args: " ".join(getattr(arg, "name", arg) for arg in args),
)  # fmt: skip
def test_torch_and_transformers_are_not_imported(args):
    command = [sys.executable, "-c", START, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.stderr.splitlines()[-1] == "IMPORTED"


# --- errors -----------------------------------------------------------------------------------

WRONG_CALLS = [
    ((), "Usage: "),
    (("nope",), "No such command 'nope'"),
    (("run",), "Missing argument 'RECIPE'"),
    (("check", "missing.yaml"), "missing.yaml: no such file"),
    (("check", "."), ".: a folder, not a recipe"),
    (("run", "RECIPE", "--threads", "0"), "--threads"),
    (("run", "RECIPE", "--threads", "many"), "--threads"),
    (("run", "RECIPE", "--memory", "much"), "--memory: 'much' is no size"),
    (("run", "RECIPE", "--memory", "-1"), "--memory"),
    (("run", "RECIPE", "--memory", "0"), "--memory: '0' is not more than zero bytes"),
    (("run", "RECIPE", "--memroy", "1GB"), "--memroy"),
    (("plan", "RECIPE", "--memory", "1 XB"), "--memory: '1 XB' is no size"),
    (("explain", "RECIPE"), "Missing argument 'TENSOR'"),
    (("explain", "RECIPE", "nope"), "the output has no tensor 'nope'"),
    (("methods", "nope"), "there is no merge method 'nope'"),
    (("run", "RECIPE", "-o", "RECIPE"), "is a file, not a folder"),
    (("run", "RECIPE", "-o", "/"), "is the root of the file system"),
    (("run", "RECIPE", "-o", ""), ""),
    (("run", "RECIPE", "-o", "/proc/none/out"), ""),
]


@pytest.mark.parametrize(("args", "words"), WRONG_CALLS)
def test_wrong_calls_end_with_2_and_a_word_on_standard_error(recipe, args, words):
    done = call(*(recipe if arg == "RECIPE" else arg for arg in args))
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize("verb", ["check", "plan", "run", "explain"])
def test_all_problems_of_a_recipe_come_at_once_from_every_verb(recipe, verb):
    recipe.write_text("merge_method: tise\nmodels: [a]\nparameters: {densty: 3}\ndtyp: bf16\n")
    args = [verb, recipe, *(["lm_head.weight"] if verb == "explain" else [])]
    done = call(*args)
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert lines[-1] == "3 problems"
    for line, words in zip(lines, ("unknown merge method 'tise'", "densty", "dtyp"), strict=False):
        assert words in line
        assert str(recipe) in line


def test_warnings_go_to_standard_error_and_quiet_hides_them(tmp_path, recipe):
    recipe.write_text("merge_method: linear\nmodels: [a, b]\nparameters: {int8_mask: true}\n")
    done = call("run", recipe, "-o", tmp_path / "o")
    assert done.code == 0
    assert re.match(r"warning: parameters.int8_mask: has no effect.*\[ignored-parameter\]\n$",
                    done.err)  # fmt: skip
    done = call("run", recipe, "-o", tmp_path / "p", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert files_of(tmp_path / "o") == files_of(tmp_path / "p")


def test_a_reader_that_goes_away_is_no_error():
    for args in ("methods", f"plan {QUICKSTART} --json", "schema"):
        command = f"{shlex.quote(sys.executable)} -m mergeconf {args}"
        for reader in ("head -1", "true"):
            script = f"set -o pipefail; {command} | {reader} > /dev/null"
            done = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, env=environment()
            )
            assert (done.returncode, done.stderr) == (0, ""), (args, reader)


def test_a_terminal_that_cannot_show_every_letter(tmp_path, recipe):
    odd = tmp_path / "ré\udce9ipe.yaml"  # not even UTF-8
    recipe.rename(odd)
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = spawn("methods", "slerp", env=ascii_only)
    assert done.code == 0
    assert spawn("check", odd, env=ascii_only).code == 0
    done = spawn("check", tmp_path / "ñ.yaml", env=ascii_only)
    assert (done.code, "no such file" in done.err) == (2, True)


# --- where the output goes --------------------------------------------------------------------


def test_the_default_output_is_named_after_the_recipe(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("run", "recipe.yaml").code == 0
    assert (tmp_path / "merged" / "recipe" / "model.safetensors").exists()
    recipe.write_text(recipe.read_text() + "metadata: {name: mine}\n")
    assert call("run", "recipe.yaml").code == 0
    assert (tmp_path / "merged" / "mine" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["../../away", "/tmp/away", "..", ".", "a/b"])
def test_a_recipe_cannot_choose_a_folder_elsewhere(tmp_path, recipe, name, monkeypatch):
    folder = tmp_path / "x" / "deep" / "er"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    before = {path for path in tmp_path.rglob("*") if ".mergeconf" not in path.name}
    recipe.write_text(recipe.read_text() + f"metadata: {{name: {json.dumps(name)}}}\n")
    done = call("run", recipe)
    assert (done.code, done.out) == (2, "")
    assert "use -o OUT" in done.err
    assert {path for path in tmp_path.rglob("*") if ".mergeconf" not in path.name} == before
    assert call("run", recipe, "-o", "here").code == 0


def test_a_model_that_is_there_is_replaced_only_with_force(tmp_path, recipe):
    out = tmp_path / "o"
    assert call("run", recipe, "-o", out).code == 0
    (out / "mine.txt").write_text("a note")
    before = files_of(out)
    recipe.write_text(recipe.read_text().replace("seed: 5", "seed: 6"))
    done = call("run", recipe, "-o", out)
    assert (done.code, done.out) == (2, "")
    assert "--force" in done.err
    assert files_of(out) == before
    assert call("run", recipe, "-o", out, "--force").code == 0
    after = files_of(out)
    assert "mine.txt" not in after, "nothing stale stays beside a new model"
    assert after["model.safetensors"] != before["model.safetensors"]


def test_what_is_no_model_is_not_replaced(tmp_path, recipe):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    done = call("run", recipe, "-o", tmp_path / "home", "--force")
    assert done.code == 2
    assert files_of(tmp_path / "home") == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("target", ["a", "x", ".", "a/../b", "link"])
def test_an_input_is_never_replaced(tmp_path, recipe, target):
    (tmp_path / "link").symlink_to("a")
    before = files_of(tmp_path)
    done = call("run", recipe, "-o", tmp_path / target, "--force")
    assert (done.code, done.out) == (2, "")
    assert "input" in done.err
    assert files_of(tmp_path) == before


def test_another_shard_size_leaves_no_stale_shard(tmp_path, recipe):
    out = tmp_path / "o"
    small = recipe.read_text() + "output: {shard_size: 2kB}\n"
    recipe.write_text(small)
    assert call("run", recipe, "-o", out).code == 0
    shards = list(out.glob("*.safetensors"))
    assert len(shards) > 2
    assert (out / "model.safetensors.index.json").exists()
    many = read_model(out)
    recipe.write_text(small.replace("2kB", "1GB"))
    assert call("run", recipe, "-o", out, "--force").code == 0
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    one = read_model(out)
    assert one.keys() == many.keys()
    assert all(one[name].equal(many[name]) for name in one)


def test_nothing_lies_beside_the_output_in_the_end(tmp_path, recipe):
    (tmp_path / "place").mkdir()
    assert call("run", recipe, "-o", tmp_path / "place" / "o").code == 0
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["o"]


# --- memory and threads -----------------------------------------------------------------------


def test_a_budget_that_is_too_small_is_refused_naming_a_tensor(tmp_path, recipe):
    done = call("run", recipe, "-o", tmp_path / "o", "--memory", "1kB")
    assert (done.code, done.out) == (2, "")
    named = done.err.partition(":")[0]
    assert named in llama_like(layers=12)
    assert not (tmp_path / "o").exists()
    least = re.search(r"allow at least --memory (\w+)", done.err)[1]
    assert call("plan", recipe, "--memory", least).code == 0
    assert call("run", recipe, "-o", tmp_path / "o", "--memory", least).code == 0


def test_budgets_and_threads_change_no_bit(tmp_path, recipe):
    assert call("run", recipe, "-o", tmp_path / "o").code == 0
    for number, options in enumerate((["--memory", "64MiB"], ["--threads", "1"], ["--threads", "7"],
                                      ["--memory", "2 GB", "--threads", "3"])):  # fmt: skip
        out = tmp_path / f"o{number}"
        assert call("run", recipe, "-o", out, *options).code == 0
        assert files_of(out) == files_of(tmp_path / "o")


# --- interruption -----------------------------------------------------------------------------


def journaled(out: Path) -> int:
    """Return how many tensors the staging folder's journal calls finished."""
    journal = out.with_name(out.name + ".mergeconf-staging") / ".mergeconf-journal"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path, recipe, number, options):
    out = tmp_path / "o"
    assert call("run", recipe, "-o", tmp_path / "whole").code == 0
    process = start_slowly(0.03, "run", recipe, "-o", out, "--threads", "2", *options)
    while journaled(out) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    done = end_of(process)
    assert done.code == 130
    assert done.err == "interrupted; run the same command again to continue\n"
    assert not out.exists()
    finished = journaled(out)
    assert 5 <= finished < len(llama_like(layers=12))
    done = call("run", recipe, "-o", out)
    assert done.code == 0
    assert f"{finished} tensors were there from an earlier run" in done.out
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob("*.mergeconf*"))


def test_an_interrupted_run_is_not_continued_by_another_recipe(tmp_path, recipe):
    out = tmp_path / "o"
    process = start_slowly(0.03, "run", recipe, "-o", out)
    while journaled(out) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert end_of(process).code == 130
    recipe.write_text(recipe.read_text().replace("seed: 5", "seed: 6"))
    assert call("run", recipe, "-o", tmp_path / "whole").code == 0
    done = call("run", recipe, "-o", out)
    assert "earlier run" not in done.out
    assert files_of(out) == files_of(tmp_path / "whole")


def _killed_again_and_again(folder: Path, recipe: Path, kills: int) -> None:
    assert call("run", recipe, "-o", folder / "whole").code == 0
    whole = files_of(folder / "whole")
    rng, left, round_number, continued = random.Random(1), kills, 0, 0
    while left:
        out = folder / f"o{round_number}"
        round_number += 1
        while left:
            process = start_slowly(0.03, "run", recipe, "-o", out, "--threads", "2")
            # some are killed at any moment, the others once they have finished something more
            goal = journaled(out) + rng.randrange(1, 6) if rng.random() < 0.7 else 0
            while journaled(out) < goal and process.poll() is None:
                time.sleep(0.005)
            try:
                process.communicate(timeout=rng.uniform(0, 0.05 if goal else 0.9))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                left -= 1
                assert process.returncode == -signal.SIGKILL or files_of(out) == whole
                continued += journaled(out) > 0
                assert not out.exists() or files_of(out) == whole
        if not out.exists():
            assert call("run", recipe, "-o", out).code == 0
        assert files_of(out) == whole
        assert not out.with_name(out.name + ".mergeconf-staging").exists()
        shutil.rmtree(out)
    assert continued, "no kill met a run that had finished something: the pauses are too short"


def test_a_run_that_is_killed_at_random_moments_gives_the_same_bytes(tmp_path, recipe):
    _killed_again_and_again(tmp_path, recipe, KILLS)


@pytest.mark.faults
def test_a_run_that_is_killed_very_often_gives_the_same_bytes(tmp_path, recipe):
    _killed_again_and_again(tmp_path, recipe, KILLS_LONG)


def test_a_second_run_at_the_same_place_is_refused_while_the_first_works(tmp_path, recipe):
    out = tmp_path / "o"
    process = start_slowly(0.02, "run", recipe, "-o", out)
    while not journaled(out) and process.poll() is None:
        time.sleep(0.005)
    done = call("run", recipe, "-o", out)
    assert done.code == 2
    assert f"is being written by process {process.pid}" in done.err
    assert end_of(process).code == 0
    assert call("run", recipe, "-o", tmp_path / "whole").code == 0
    assert files_of(out) == files_of(tmp_path / "whole")


# --- what a run leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_output_folder_is_complete(tmp_path, ending):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = made("llama", 0, tokenizer=True)
    text = (
        f"# Grüße, {{}}\nmerge_method: ties\nbase_model: {base}\n"
        f"models:\n  - {made('llama', 1)}\n  - {made('llama', 2)}\nout_dtype: bfloat16\n"
    ).replace("\n", ending)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xef\xbb\xbf" + text.encode())
    out = tmp_path / "o"
    assert call("run", recipe, "-o", out).code == 0
    assert set(files_of(out)) == {*files_of(base), "recipe.yaml", "mergeconf.lock"}
    assert "chat_template.jinja" in files_of(out)
    assert "tokenizer.json" in files_of(out)
    for name in files_of(base).keys() - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert (out / "recipe.yaml").read_bytes() == recipe.read_bytes()
    config = json.loads((base / "config.json").read_text())
    written = json.loads((out / "config.json").read_text())
    assert written == {**config, "dtype": "bfloat16"}
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == "torch.bfloat16"
    assert model.generation_config.max_new_tokens == 7
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("w3 w5")["input_ids"] == [7, 9]


def test_a_run_of_its_own_output_recipe_gives_the_same_weights(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{made('gpt2', 1)}, {made('gpt2', 2)}]\n")
    assert call("run", recipe, "-o", tmp_path / "o").code == 0
    assert call("run", tmp_path / "o" / "recipe.yaml", "-o", tmp_path / "p").code == 0
    assert model_of(files_of(tmp_path / "o")) == model_of(files_of(tmp_path / "p"))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_every_kind_without_a_missing_or_unexpected_key(tmp_path, kind):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: parameter_selection\nbase_model: {made(kind)}\n"
        f"models: [{made(kind, 1)}, {made(kind, 2)}]\noutput: {{shard_size: 9kB}}\n"
    )
    assert call("run", recipe, "-o", tmp_path / "o").code == 0
    assert (tmp_path / "o" / "model.safetensors.index.json").exists()
    load_exactly(tmp_path / "o")
    if kind in CAUSAL:
        from transformers import AutoModelForCausalLM

        _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "o", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
