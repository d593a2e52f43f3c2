"""Warnings that are told without reading weights: where each is given, and where it must not be."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mergeconf
from mergeconf.codes import WARNINGS
from mergeconf.dtypes import DType
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from mergeconf.plan import make_plan
from mergeconf.plan.effects import ELECTING, effects, has_weights
from mergeconf.plan.lint import CHECKS, CHECKS_OF_RESULT
from mergeconf.plan.lint_values import DENSITIES, kept, smallest_effect
from mergeconf.recipe import load_recipe
from support.command import ROOT, call
from support.models import write_model
from support.relatives import VOCAB, codes_of, plan_of, stranger, warnings_of, write_family

REAL = ROOT / "recipes" / "models"


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A base and two fine-tunes in bfloat16; nothing may be written but recipes."""
    folder = tmp_path_factory.mktemp("family")
    write_family(folder)
    return folder


# --- the list of codes ------------------------------------------------------------------------


def codes_in(tree: ast.AST) -> set[str]:
    """Return the codes of warnings that a module's source gives, wherever it makes a Problem."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        texts = [
            arg.value if isinstance(arg, ast.Constant) and isinstance(arg.value, str) else ""
            for arg in node.args
        ]
        keywords = {word.arg: ast.unparse(word.value).strip("'\"") for word in node.keywords}
        if name == "Problem" and "warning" in texts[:-1]:
            found.add(texts[texts.index("warning") + 1])
        elif keywords.get("severity") == "warning":
            found.add(keywords["code"])
        elif "warn" in name:
            found.update(text for text in texts[:2] if re.fullmatch(r"[a-z]+(-[a-z]+)+", text))
    return found - {"", "code"}  # helpers that are given the code


def test_every_warning_of_the_program_is_in_the_list_and_nothing_else():
    files = sorted(Path(mergeconf.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    assert set.union(*(codes_in(ast.parse(path.read_text())) for path in files)) == set(WARNINGS)
    assert (CHECKS.keys() | CHECKS_OF_RESULT.keys()) < WARNINGS.keys()


def test_the_table_of_the_readme_is_the_list():
    section = (ROOT / "README.md").read_text().partition("<!-- warnings: begin -->")[2]
    section = section.partition("<!-- warnings: end -->")[0]
    rows = re.findall(r"^\| `([^`|]+)` \| (.*?) \|$", section, re.MULTILINE)
    assert rows == list(WARNINGS.items())


def test_check_lists_the_codes_without_a_recipe():
    done = call("check", "--codes")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == list(WARNINGS)


@pytest.mark.parametrize(
    ("code", "hint"),
    [("license-conflicts", "did you mean 'license-conflict'?"), ("qqq", "mergeconf check --codes")],
)
def test_silencing_what_there_is_not_is_a_warning(code, hint):
    text = f"merge_method: linear\nmodels: [a, b]\nsilence: [self-merge, {code}]\n"
    (warning,) = load_recipe(text).warnings
    assert (warning.code, warning.where, warning.location.line) == ("unknown-code", "silence.1", 3)
    assert hint in warning.hint
    assert load_recipe(text.replace("self-merge", "unknown-code")).warnings == ()


# --- where nothing is to be said --------------------------------------------------------------

ORDERS = [str(REAL / f"order-{number}") for number in (1, 2, 3, 4)]
TWO = f"models: [{ORDERS[0]}, {ORDERS[1]}]\n"
BASE = f"base_model: {REAL / 'base'}\n"
PUBLISHED = [
    f"merge_method: linear\n{TWO}parameters: {{weight: 1.0}}\ndtype: bfloat16\n",
    f"merge_method: linear\nmodels: [{', '.join(ORDERS)}]\nparameters: {{normalize: false, "
    "weight: 0.25}\nout_dtype: float32\n",
    f"merge_method: ties\n{BASE}models:\n  - {{model: {ORDERS[0]}, parameters: {{density: [1, 0.7, "
    f"0.1], weight: 1.0}}}}\n  - {{model: {ORDERS[1]}, parameters: {{density: 0.5, weight: [0, 0.3,"
    " 0.7, 1]}}\nparameters: {normalize: true}\ndtype: bfloat16\n",
    f"merge_method: ties\n{BASE}models:\n  - {{model: {ORDERS[0]}, parameters: {{density: 0.33, "
    f"weight: [{{filter: mlp, value: 0.5}}, {{value: 0}}]}}}}\n  - {ORDERS[1]}\n"
    "parameters: {weight: 0.5}\n",
    f"merge_method: dare_ties\n{BASE}{TWO}parameters: {{density: 0.53, weight: 0.4}}\n",
    f"merge_method: dare_linear\n{BASE}{TWO}parameters: {{density: 0.001, weight: 0.1}}\n",
    f"merge_method: task_arithmetic\n{BASE}{TWO}parameters: {{weight: -0.3, lambda: 0.7}}\n",
    f"merge_method: breadcrumbs\n{BASE}{TWO}parameters: {{density: 0.9, gamma: 0.01, weight: 1}}\n",
    f"merge_method: della\n{BASE}{TWO}parameters: {{density: 0.5, epsilon: 0.1, weight: 0.5}}\n",
    f"merge_method: model_stock\n{BASE}{TWO}",
    f"merge_method: sce\n{BASE}{TWO}parameters: {{select_topk: 0.15}}\n",
    f"merge_method: karcher\n{TWO}",
    f"merge_method: slerp\nbase_model: {ORDERS[0]}\n{TWO}parameters: {{t: [0, 0.01, 0.5, 1]}}\n",
    f"merge_method: parameter_selection\n{BASE}models:\n  - {ORDERS[0]}\n"
    f"  - {{model: {ORDERS[1]}, parameters: {{weight: 0.0001}}}}\n",
    "merge_method: passthrough\nslices:\n"
    f"  - sources: [{{model: {ORDERS[0]}, layer_range: [0, 3]}}]\n"
    f"  - sources: [{{model: {ORDERS[0]}, layer_range: [1, 4]}}]\n",
    f"merge_method: linear\nmodels:\n  - {{merge_method: slerp, base_model: {ORDERS[0]}, models: "
    f"[{ORDERS[0]}, {ORDERS[1]}], parameters: {{t: 0.4}}}}\n  - {ORDERS[2]}\n",
]


@pytest.mark.parametrize("text", PUBLISHED, ids=range(len(PUBLISHED)))
def test_real_fine_tunes_in_the_style_of_published_recipes_are_no_cause(text):
    assert make_plan(load_recipe(text)).warnings == ()


def test_the_recipes_of_the_repository_are_no_cause():
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        assert make_plan(load_recipe(path)).warnings == ()


# --- weights ----------------------------------------------------------------------------------

WEIGHTED = sorted(
    name for name, method in all_methods().items() if has_weights(method) and not method.copies
)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", WEIGHTED)
def test_effects_are_how_much_the_result_moves_with_each_model(tmp_path, name, normalize):
    method = all_methods()[name]
    switch = next((p for p in method.parameters if p.startswith("normalize")), None)
    weights = (0.7, 0.2) if normalize else (0.7, 0.3)
    parameters: dict[str, Any] = {"weight": weights}
    if switch is not None:
        parameters[switch] = normalize
    if "lambda" in method.parameters:
        parameters["lambda"] = 0.5
    base = torch.linspace(0.5, 1.5, 600)
    models = [base + 0.01, base + 0.012]
    uses_base = method.base != "unused"
    for label, tensor in zip(("base", "a", "b"), (base, *models), strict=True):
        write_model(tmp_path / label, {"x.weight": tensor})
    lines = [f"merge_method: {name}", "base_model: base" if uses_base else ""]
    shared = {key: value for key, value in parameters.items() if key != "weight"}
    lines += ["models:"] + [
        f"  - {{model: {label}, parameters: {{weight: {weight}}}}}"
        for label, weight in zip("ab", weights, strict=True)
    ]
    lines += [f"parameters: {json.dumps(shared)}"]
    plan = plan_of(tmp_path, "\n".join(lines) + "\n")
    found = effects(plan.tensors[0].decision)

    def result(*inputs: torch.Tensor) -> torch.Tensor:
        values = {**parameters, "weight": weights}
        return evaluate(method, base if uses_base else None, inputs, values).double()

    for index, coefficient in enumerate(found):
        moved = [m + 0.001 * (position == index) for position, m in enumerate(models)]
        step = result(*moved) - result(*models)
        assert float(step.median()) / 0.001 == pytest.approx(coefficient, rel=0.05)


def test_methods_whose_weights_are_no_coefficients(family):
    for name in sorted(ELECTING):
        text = f"merge_method: {name}\nbase_model: base\nmodels: [a, b]\n"
        text += "parameters: {density: 0.5, weight: 0.001, normalize: true}\n"
        assert effects(plan_of(family, text).tensors[0].decision) is None
    text = "merge_method: parameter_selection\nbase_model: base\nmodels: [a, b]\n"
    assert effects(plan_of(family, text).tensors[0].decision) is None


@pytest.mark.parametrize("dtype", [DType.bfloat16, DType.float16])
def test_below_the_limit_rounding_hides_most_of_a_large_change(dtype):
    kind = getattr(torch, dtype.name)
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(100_000, generator=generator).to(kind).float()
    delta = torch.randn(100_000, generator=generator) / 8

    def hidden(weight: float) -> float:
        return float(((base + weight * delta).to(kind).float() == base).double().mean())

    assert hidden(smallest_effect(dtype)) > 0.5
    assert hidden(smallest_effect(dtype) * 8) < 0.3


TINY = "models:\n  - a\n  - {model: b, parameters: {weight: 0.01}}\n"


@pytest.mark.parametrize(
    "text",
    [
        f"merge_method: linear\n{TINY}parameters: {{weight: 1}}\n",
        f"merge_method: linear\n{TINY}parameters: {{weight: 1, normalize: false}}\n",
        f"merge_method: task_arithmetic\nbase_model: base\n{TINY}",
        f"merge_method: ties\nbase_model: base\n{TINY}",
        f"merge_method: dare_linear\nbase_model: base\n{TINY}",
        f"merge_method: nuslerp\n{TINY}parameters: {{weight: 1}}\n",
        f"merge_method: multislerp\n{TINY}parameters: {{weight: 1}}\n",
    ],
)
def test_a_weight_that_rounding_swallows(family, text):
    (warning,) = warnings_of(family, text)
    assert codes_of([warning]) == ["weight-swallowed"]
    assert warning.where == "models.1.parameters.weight"
    assert warning.location is not None
    assert "'b' counts with 0.0" in warning.message
    assert "below 0.016 rounding to bfloat16" in warning.message
    for changed in (
        f"{text}out_dtype: float32\n",
        f"{text}silence: [weight-swallowed]\n",
        text.replace("0.01", "0.02"),
        text.replace("0.01", "0"),
        text.replace("0.01", "[0.01, 0.5]"),
    ):
        assert warnings_of(family, changed) == [], changed


def test_what_makes_a_weight_too_small_is_named(family):
    text = (
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [a]\nparameters: {lambda: 0.01}"
    )
    (warning,) = warnings_of(family, f"{text}\n")
    assert warning.where == "parameters.lambda"
    text = "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: 0.004}\n"
    (warning,) = warnings_of(family, text)
    assert (warning.code, warning.where) == ("weight-swallowed", "parameters.t")
    text = (
        "merge_method: linear\nmodels: [a, b]\nrules:\n"
        "  - {match: '*.mlp.*', parameters: {weight: [{layers: 0, value: 0.3}, {value: 0.4}]}}\n"
    )
    assert warnings_of(family, text) == []


def test_many_small_weights_add_up(tmp_path):
    names = ["base", *(f"m{number}" for number in range(100))]
    for name in names:
        write_model(tmp_path / name, {"x.weight": torch.ones(3, dtype=torch.bfloat16)})
    text = f"merge_method: linear\nmodels: [{', '.join(names)}]\n"
    assert warnings_of(tmp_path, text) == []


def test_a_merge_inside_a_recipe_is_looked_at_too(family):
    inner = "{merge_method: linear, models: [a, {model: b, parameters: {weight: 0.001}}], "
    inner += "parameters: {weight: 1}}"
    text = f"merge_method: slerp\nbase_model: base\nmodels: [{inner}]\nparameters: {{t: 0.5}}\n"
    (warning,) = warnings_of(family, text)
    assert warning.code == "weight-swallowed"
    assert warning.location.line == 3
    assert warnings_of(family, f"{text}silence: [weight-swallowed]\n") == []


# --- densities --------------------------------------------------------------------------------


def test_every_method_with_a_share_of_elements_is_known():
    having = {n for n, m in all_methods().items() if set(DENSITIES) & m.parameters.keys()}
    assert having == {
        "ties", "dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs",
        "breadcrumbs_ties", "sce",
    }  # fmt: skip


@pytest.mark.parametrize("numel", [1, 7, 64, 500])
@pytest.mark.parametrize("density", [0.0, 0.004, 0.02, 0.3])
@pytest.mark.parametrize(
    "name", sorted(n for n, m in all_methods().items() if set(DENSITIES) & m.parameters.keys())
)
def test_nothing_is_kept_exactly_where_it_is_said(name, density, numel):
    method = all_methods()[name]
    generator = torch.Generator().manual_seed(numel)
    base = torch.randn(numel, generator=generator)
    models = [base + torch.randn(numel, generator=generator) for _ in range(2)]
    parameters: dict[str, Any] = (
        {"select_topk": density} if name == "sce" else {"density": (density,) * 2}
    )
    if "epsilon" in method.parameters:
        parameters["epsilon"] = (density / 2,) * 2
    got = evaluate(method, base, models, parameters)
    if not kept(name, density, numel):
        assert torch.equal(got, base)
    elif name in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        assert not torch.equal(got, base)


def test_a_density_that_keeps_nothing(family):
    text = (
        "merge_method: {}\nbase_model: base\nmodels:\n  - a\n  - {{model: b, parameters: {{{}}}}}\n"
    )
    for name in ("ties", "dare_ties", "della", "breadcrumbs"):
        (warning,) = warnings_of(family, text.format(name, "density: 0"))
        assert (warning.code, warning.where) == (
            "density-keeps-nothing", "models.1.parameters.density",
        )  # fmt: skip
        assert "a density of 0 keeps nothing of 'b'" in warning.message
    # norms have 24 elements: floor(0.04 · 24) = 0
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        (warning,) = warnings_of(family, text.format(name, "density: 0.04"))
        assert "keeps nothing of 'b' in 3 of 11 tensors" in warning.message
        assert "model.layers.0.input_layernorm.weight" in warning.message
        assert warnings_of(family, text.format(name, "density: 0.042")) == []
    assert warnings_of(family, text.format("ties", "density: 0.0001")) == []
    assert warnings_of(family, text.format("ties", "density: [0, 1]")) == []
    partly = "density: [{filter: mlp, value: 0}, {value: 0.5}]"
    assert warnings_of(family, text.format("ties", partly)) == []


def test_a_selection_that_keeps_nothing(family):
    text = "merge_method: sce\nbase_model: base\nmodels: [a, b]\nparameters: {select_topk: 0.01}\n"
    (warning,) = warnings_of(family, text)
    assert (warning.code, warning.where) == ("density-keeps-nothing", "parameters.select_topk")
    assert "'a, b' in 3 of 11" in warning.message


# --- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked", "where"),
    [
        (torch.bfloat16, "out_dtype: float16", "out_dtype"),
        (torch.float32, "dtype: float16", "dtype"),
        (torch.float16, "out_dtype: float16", None),
        (torch.float32, "out_dtype: bfloat16", None),
        (torch.bfloat16, "{dtype: float16, out_dtype: bfloat16}", None),
        (torch.float16, "", None),
    ],
)
def test_a_format_that_loses_range(tmp_path, stored, asked, where):
    write_family(tmp_path, dtype=stored)
    text = f"merge_method: linear\nmodels: [a, b]\n{asked.strip('{}').replace(', ', chr(10))}\n"
    found = warnings_of(tmp_path, text)
    assert [(w.code, w.where) for w in found] == ([("dtype-loses-range", where)] if where else [])
    if where:
        assert found[0].location.line == 3
        assert "11 tensors" in found[0].message


def test_range_is_lost_to_a_base_in_float16_too(tmp_path):
    write_family(tmp_path, dtype=torch.bfloat16)
    half = {name: tensor.half() for name, tensor in stranger(0).items()}
    write_model(tmp_path / "base", half)
    (warning,) = warnings_of(tmp_path, "merge_method: ties\nbase_model: base\nmodels: [a, b]\n")
    assert (warning.code, warning.where, warning.location) == ("dtype-loses-range", "", None)


# --- the same models --------------------------------------------------------------------------


def test_two_names_of_the_same_files(tmp_path):
    write_family(tmp_path)
    (tmp_path / "again").symlink_to("a", target_is_directory=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.safetensors").symlink_to(tmp_path / "base" / "model.safetensors")
    text = "merge_method: ties\nbase_model: base\nmodels: [a, again, b]\n"
    (warning,) = warnings_of(tmp_path, text)
    assert (warning.code, warning.where) == ("identical-models", "again")
    assert "'again' and 'a' are the same files" in warning.message
    assert warning.location.line == 3
    text = "merge_method: ties\nbase_model: base\nmodels: [a, cache]\n"
    (warning,) = warnings_of(tmp_path, text)
    assert "'cache' and the base are the same files" in warning.message
    assert warnings_of(tmp_path, f"{text}silence: [identical-models]\n") == []
    # a base that gives only its small files is merged once
    assert warnings_of(
        tmp_path, "merge_method: linear\nbase_model: cache\nmodels: [base, a]\nsilence: "
        "[base-not-merged]\n",
    ) == []  # fmt: skip


def test_a_model_merged_with_itself(tmp_path):
    write_family(tmp_path)
    (tmp_path / "again").symlink_to("a", target_is_directory=True)
    text = "merge_method: slerp\nbase_model: a\nmodels: [again]\nparameters: {t: 0.5}\n"
    assert codes_of(warnings_of(tmp_path, text)) == ["self-merge"]
    text = "merge_method: linear\nmodels: [a, a]\n"
    assert codes_of(warnings_of(tmp_path, text)) == ["duplicate-model", "self-merge"]
    # layers of one model, merged with others of its own, are another matter
    text = (
        "merge_method: linear\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 2]}\n"
        "      - {model: again, layer_range: [1, 3]}\nrules:\n"
        "  - {match: 're:.*(embed_tokens|lm_head).*', take: a}\n"
    )
    assert not {"self-merge", "identical-models"} & set(codes_of(warnings_of(tmp_path, text)))


# --- tokenizers -------------------------------------------------------------------------------


def tokenizer_json(tokens: list[str], added: dict[str, int] | None = None, **more: Any) -> str:
    """Return a tokenizer.json of a byte pair model."""
    entries = [{"id": number, "content": token} for token, number in (added or {}).items()]
    vocab = {token: number for number, token in enumerate(tokens)}
    return json.dumps({"added_tokens": entries, "model": {"type": "BPE", "vocab": vocab}, **more})


def numbered(tokens: list[str]) -> str:
    """Return a vocab.json."""
    return json.dumps({token: number for number, token in enumerate(tokens)})


WORDS = [f"w{number}" for number in range(VOCAB - 2)]
SWAPPED = [WORDS[1], WORDS[0], *WORDS[2:]]
PLAIN = tokenizer_json(WORDS, {"<s>": VOCAB - 2})
TIES = "merge_method: ties\nbase_model: base\nmodels: [a, b]\n"


def tokenizer_warnings(folder: Path, mine: dict[str, str], theirs: dict[str, str], text=TIES):
    write_family(folder, files={"base": mine, "a": theirs, "b": mine})
    return warnings_of(folder, text)


@pytest.mark.parametrize(
    ("other", "count", "example"),
    [
        (tokenizer_json(SWAPPED, {"<s>": VOCAB - 2}), 2, "0 is 'w1', not 'w0'"),
        (tokenizer_json(WORDS, {"<t>": VOCAB - 2}), 1, "38 is '<t>', not '<s>'"),
        (tokenizer_json(WORDS, {"<s>": VOCAB - 2, "<x>": VOCAB - 1}), 1, "39 is '<x>', not none"),
        (json.dumps({"model": {"vocab": [[w, -1.5] for w in SWAPPED]}, "added_tokens": [
            {"id": VOCAB - 2, "content": "<s>"}]}), 2, "0 is 'w1'"),
    ],
)  # fmt: skip
def test_embeddings_of_other_tokens(tmp_path, other, count, example):
    mine, theirs = {"tokenizer.json": PLAIN}, {"tokenizer.json": other}
    (warning,) = tokenizer_warnings(tmp_path, mine, theirs)
    assert (warning.code, warning.where) == ("tokenizers-differ", "a")
    assert f"{count} of 40 ids mean other tokens than for 'base'" in warning.message
    assert example in warning.message
    for changed in (
        f"{TIES}tokenizer_source: base\n",
        f"{TIES}silence: [tokenizers-differ]\n",
        f"{TIES}rules: [{{match: 're:.*(embed_tokens|lm_head).*', take: base_model}}]\n",
    ):
        assert warnings_of(tmp_path, changed) == []


def test_the_tokenizer_of_the_output_need_not_be_that_of_a_merged_model(tmp_path):
    mine, theirs = {"tokenizer.json": PLAIN}, {"tokenizer.json": tokenizer_json(SWAPPED)}
    text = "merge_method: linear\nbase_model: base\nmodels: [a]\nsilence: [base-not-merged]\n"
    assert tokenizer_warnings(tmp_path, mine, theirs, text) == []  # one model: nothing is merged
    (warning,) = warnings_of(tmp_path, text.replace("[a]", "[a, b]"))
    assert "'base', whose tokenizer the output has" in warning.message


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"tokenizer.json": PLAIN}, {"tokenizer.json": json.dumps(json.loads(PLAIN), indent=1)}),
        ({"tokenizer.json": PLAIN},
         {"tokenizer.json": tokenizer_json(WORDS, {"<s>": VOCAB - 2}, truncation={"max": 5})}),
        # tokens beyond the embedding's rows have no row
        ({"tokenizer.json": PLAIN},
         {"tokenizer.json": tokenizer_json(WORDS, {"<s>": VOCAB - 2, "<x>": VOCAB})}),
        # the same vocabulary in files of another kind, which do not tell all added tokens
        ({"tokenizer.json": PLAIN}, {"vocab.json": numbered(WORDS)}),
        ({"tokenizer.json": PLAIN}, {"vocab.txt": "\n".join(WORDS) + "\n"}),
        ({"tokenizer.json": PLAIN}, {}),
        ({}, {"tokenizer.json": PLAIN}),
        ({"tokenizer.json": PLAIN}, {"tokenizer.json": "{"}),
        ({"tokenizer.json": PLAIN}, {"tokenizer.json": '{"model": {"vocab": 5}}'}),
        ({"tokenizer.model": "one"}, {"tokenizer.model": "other"}),
    ],
)  # fmt: skip
def test_tokenizers_that_are_alike_or_not_known(tmp_path, mine, theirs):
    assert tokenizer_warnings(tmp_path, mine, theirs) == []


@pytest.mark.parametrize(
    "theirs",
    [
        {"vocab.txt": "\n".join(SWAPPED)},
        {"vocab.json": numbered(SWAPPED)},
        {"vocab.json": "{}", "added_tokens.json": json.dumps({"w1": 0, "w0": 1})},
    ],
)
def test_vocabularies_in_files_of_another_kind(tmp_path, theirs):
    (warning,) = tokenizer_warnings(tmp_path, {"tokenizer.json": PLAIN}, theirs)
    assert "2 of 40 ids" in warning.message


# --- licenses ---------------------------------------------------------------------------------


def card(license: str, **more: str) -> dict[str, str]:
    """Return a model card that names a license."""
    lines = [f"license: {license}", *(f"{key}: {value}" for key, value in more.items())]
    return {"README.md": "---\n" + "\n".join(lines) + "\ntags: [merge]\n---\n# A model\n"}


def license_warnings(folder: Path, declared: str, **models: dict[str, str]):
    write_family(folder, files=models)
    return warnings_of(folder, f"{TIES}metadata: {{{declared}}}\n")


NONCOMMERCIAL = card("cc-by-nc-4.0")
LLAMA = card("llama3.1")


@pytest.mark.parametrize(
    ("declared", "models", "words"),
    [
        ("license: apache-2.0", {"a": NONCOMMERCIAL}, ["apache-2.0 promises more", "cc-by-nc-4.0",
         "a (README.md)", "no commercial use"]),
        ("license: mit", {"base": LLAMA, "a": card("mit")}, ["llama3.1 of base", "whose terms"]),
        ("license: Apache 2.0", {"a": card("gpl-3.0")}, ["gpl-3.0 of a", "the same license"]),
        ("license: llama3.1", {"a": NONCOMMERCIAL}, ["llama3.1 promises more", "cc-by-nc-4.0"]),
        ("", {"a": card("gpl-3.0"), "b": NONCOMMERCIAL}, ["cannot both hold", "gpl-3.0 of a",
         "cc-by-nc-4.0 of b"]),
        ("", {"base": LLAMA, "b": card("cc-by-sa-4.0")}, ["cannot both hold", "llama3.1 of base"]),
        ("", {"a": card("cc-by-nc-nd-4.0")}, ["cc-by-nc-nd-4.0 of a", "does not allow sharing"]),
        ("license: apache-2.0", {"a": card("other", license_name="llama-3")}, ["llama-3 of a"]),
        ("license: apache-2.0", {"a": {"LICENSE": "  Creative Commons\n\nAttribution-NonCommercial"
         " 4.0\nInternational\n"}}, ["cc-by-nc-4.0 of a (LICENSE)"]),
        ("license: apache-2.0", {"a": {"LICENSE.txt": "META LLAMA 3 COMMUNITY LICENSE\n"}},
         ["llama3 of a (LICENSE.txt)"]),
        ("license: mit", {"a": {"COPYING": "GNU GENERAL PUBLIC LICENSE\n  Version 2, June 1991"}},
         ["gpl-2.0 of a (COPYING)"]),
        ("license: mit", {"a": {"LICENSE": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"}}, ["llama3.2"]),
    ],
)  # fmt: skip
def test_licenses_that_conflict(tmp_path, declared, models, words):
    (warning,) = license_warnings(tmp_path, declared, **models)
    assert warning.code == "license-conflict"
    assert (warning.where, warning.location.line) == (
        ("metadata.license", 4) if declared else ("models", 3)
    )
    for word in words:
        assert word in warning.message
    text = (tmp_path / "recipe.yaml").read_text()
    assert warnings_of(tmp_path, f"{text}silence: [license-conflict]\n") == []


@pytest.mark.parametrize(
    ("declared", "models"),
    [
        ("license: apache-2.0", {"base": card("apache-2.0"), "a": card("mit")}),
        ("license: cc-by-nc-4.0", {"base": card("apache-2.0"), "a": NONCOMMERCIAL, "b": LLAMA}),
        ("license: llama3.1", {"base": LLAMA, "a": card("apache-2.0"), "b": card("llama3")}),
        ("", {"base": LLAMA, "a": NONCOMMERCIAL, "b": card("apache-2.0")}),
        ("license: gpl-3.0", {"a": card("cc-by-sa-4.0"), "b": card("mit")}),
        ("license: other", {"a": NONCOMMERCIAL}),
        ("license: apache-2.0", {"a": card("my-own-license")}),
        ("license: apache-2.0", {"a": card("other")}),
        ("license: apache-2.0", {"a": card("[cc-by-nc-4.0, mit]")}),
        ("license: apache-2.0", {"a": {"README.md": "no front matter, license: cc-by-nc-4.0\n"}}),
        ("license: apache-2.0", {"a": {"README.md": "---\nlicense: [\n---\n"}}),
        ("license: apache-2.0", {"a": {"README.md": "---\n- 1\n---\n", "LICENSE": "all mine"}}),
        ("license: [apache-2.0]", {"a": NONCOMMERCIAL}),
        # the card comes first: what a license file mentions further down counts for nothing
        ("license: mit", {"a": {**card("mit"), "LICENSE": "Attribution-NonCommercial 4.0"}}),
        ("license: mit", {"a": {"LICENSE": "MIT License\n" + "x " * 900 + "gemma terms of use"}}),
    ],
)  # fmt: skip
def test_licenses_that_go_together_or_are_not_known(tmp_path, declared, models):
    assert license_warnings(tmp_path, declared, **models) == []


def test_the_license_of_a_model_that_gives_no_tensor_does_not_count(tmp_path):
    write_family(tmp_path, files={"base": NONCOMMERCIAL})
    text = "merge_method: linear\nbase_model: base\nmodels: [a, b]\nmetadata: {license: mit}\n"
    assert warnings_of(tmp_path, f"{text}silence: [base-not-merged]\n") == []


def test_licenses_of_merges_inside_a_recipe_count_once(tmp_path):
    write_family(tmp_path, files={"a": NONCOMMERCIAL})
    inner = "{merge_method: linear, models: [a, b]}"
    text = f"merge_method: ties\nbase_model: base\nmodels: [{inner}]\nmetadata: {{license: mit}}\n"
    assert codes_of(warnings_of(tmp_path, text)) == ["license-conflict"]
