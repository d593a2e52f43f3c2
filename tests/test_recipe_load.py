"""Good recipes and what becomes of them."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mergeconf.recipe import DEFAULT_SHARD_SIZE, Recipe, load_recipe
from mergeconf.recipe.model import ModelRef
from mergeconf.recipe.schema import parse_dtype
from mergeconf.recipe.values import Cases, Constant, Gradient

# the example of RECIPE.md
EXAMPLE = r"""
merge_method: parameter_selection      # or linear, ties, dare_ties, slerp, ...
base_model: org/base@main              # Hub id, optional @revision; or a local folder
models:
  - model: org/sft-order-1
    parameters: {weight: 1.0}
  - model: org/sft-order-2
  - model: org/sft-order-3
parameters:
  resample: all
dtype: float32
out_dtype: bfloat16
tokenizer: {source: base}
seed: 42
rules:
  - match: "model.embed_tokens.*"
    merge_method: linear
  - layers: 0-7
    match: "*.self_attn.*"
    merge_method: ties
    parameters: {density: 0.3, weight: [0.2, 0.8]}
  - match: "re:.*\\.(input|post_attention)_layernorm\\.weight"
    take: base_model
  - match: "vision_tower.*"
    drop: true
output:
  shard_size: 5GB
metadata:
  name: my-merge
  license: apache-2.0
"""


def test_the_example_of_the_format():
    recipe = load_recipe(EXAMPLE)
    assert recipe.method == "parameter_selection"
    assert recipe.take is None
    assert (recipe.base_model.hub_id, recipe.base_model.revision) == ("org/base", "main")
    assert [str(entry.model) for entry in recipe.models] == [
        f"org/sft-order-{i}" for i in (1, 2, 3)
    ]
    assert recipe.models[0].parameters["weight"].value == 1.0
    assert recipe.parameters["resample"].value == "all"
    assert (recipe.dtype, recipe.out_dtype, recipe.output_dtype) == (
        "float32",
        "bfloat16",
        "bfloat16",
    )
    assert recipe.seed == 42
    assert [(r.method, str(r.take), r.drop) for r in recipe.rules] == [
        ("linear", "None", False),
        ("ties", "None", False),
        (None, "org/base@main", False),
        (None, "None", True),
    ]
    assert isinstance(recipe.rules[1].parameters["weight"], Gradient)
    assert recipe.shard_size == 5 * 10**9
    assert recipe.name == "my-merge"
    assert recipe.metadata == {"name": "my-merge", "license": "apache-2.0"}
    assert recipe.warnings == ()
    assert recipe.text == EXAMPLE
    assert str(recipe.rules[1].location) == "<recipe>:18:5"
    assert str(recipe.locations["seed"]) == "<recipe>:14:7"


def test_a_short_recipe_has_defaults():
    recipe = load_recipe("merge_method: linear\nmodels: [a, b]\n")
    assert [str(entry.model) for entry in recipe.models] == ["a", "b"]
    assert (recipe.seed, recipe.shard_size, recipe.output_dtype) == (0, DEFAULT_SHARD_SIZE, None)
    assert (recipe.base_model, recipe.rules, recipe.name) == (None, (), "merge")
    assert recipe.folder == Path()


def test_empty_keys_are_as_if_left_out():
    text = "merge_method: linear\nmodels:\n  - model: a\n    parameters:\n" + "".join(
        f"{key}:\n"
        for key in [
            "base_model",
            "parameters",
            "rules",
            "seed",
            "dtype",
            "out_dtype",
            "tokenizer",
            "tokenizer_source",
            "chat_template",
            "slices",
            "modules",
            "definitions",
            "output",
            "metadata",
            "silence",
            "take",
            "name",
        ]
    )
    recipe = load_recipe(text)
    assert recipe.seed == 0
    assert recipe.models[0].parameters == {}


# recipes of mergekit's own kind: they are valid here, and mean the same
MERGEKIT = [
    """\
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: garage-bAInd/Platypus2-13B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    """\
models:
  - model: mistralai/Mistral-7B-v0.1
    # no parameters necessary for base model
  - model: org/a
    parameters: {density: 0.5, weight: 0.5}
merge_method: dare_ties
base_model: mistralai/Mistral-7B-v0.1
parameters: {normalize: yes}
dtype: torch.bfloat16
tokenizer_source: base
""",
    """\
merge_method: slerp
base_model: {model: ./a}
models: [{model: {model: {path: org/b, revision: v1}}}]
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
""",
]


@pytest.mark.parametrize("text", MERGEKIT)
def test_recipes_of_mergekit_are_recipes(text):
    assert load_recipe(text).method in ("ties", "dare_ties", "slerp")


def test_the_forms_of_parameter_values():
    ties, _, slerp = (load_recipe(text) for text in MERGEKIT)
    assert ties.models[0].parameters["density"].values == (1, 0.7, 0.1)
    cases = ties.models[2].parameters["weight"]
    assert isinstance(cases, Cases)
    assert [case.matcher.filter for case in cases.cases] == ["mlp", None]
    assert isinstance(slerp.parameters["t"].cases[0].value, Gradient)
    one = load_recipe("merge_method: linear\nmodels: [a]\nparameters: {weight: {value: 2}}\n")
    assert one.parameters["weight"].cases[0].value.value == 2
    assert [warning.code for warning in ties.warnings] == ["ignored-parameter"]


def test_keeping_the_base_where_no_rule_fits():
    recipe = load_recipe(
        "take: base_model\nbase_model: o/x\nmodels: [o/a, o/b]\n"
        "rules: [{match: '*mlp*', merge_method: linear, parameters: {weight: 1}}]\n"
    )
    assert (recipe.method, str(recipe.take)) == (None, "o/x")
    assert load_recipe("take: base_model\nbase_model: o/x\n").models == ()
    assert str(load_recipe("take: ./a/\nmodels: [a, b]\n").take) == "a"


def test_parameters_that_only_a_rule_needs_may_stand_anywhere():
    recipe = load_recipe(
        "merge_method: linear\nbase_model: o/x\n"
        "models: [{model: o/a, parameters: {density: 0.5}}, o/b]\n"
        "parameters: {lambda: 0.5}\nrules: [{layers: 0, merge_method: ties}]\n"
    )
    assert set(recipe.parameters) == {"lambda"}


def test_a_file_keeps_its_text_and_gives_its_name(tmp_path):
    raw = "\ufeff# bytes stay\r\nmerge_method: linear\r\nmodels: [./a, b]\r\n"
    path = tmp_path / "good-one.yaml"
    path.write_bytes(raw.encode())
    for source in (path, str(path)):
        recipe = load_recipe(source)
        assert recipe.text.encode() == path.read_bytes()
        assert (recipe.path, recipe.folder, recipe.name) == (path, tmp_path, "good-one")
        assert recipe.models[0].model.local_path(recipe.folder) == tmp_path / "a"
        assert str(recipe.models[1].model.location) == f"{path}:3:15"


def test_a_mapping_is_a_recipe_without_places():
    data = {
        "merge_method": "linear",
        "models": ("o/a", {"model": Path("o/b"), "parameters": {"weight": 1e-3}}),
        "name": "no",
    }
    recipe = load_recipe(data)
    assert (recipe.path, recipe.name, recipe.locations) == (None, "no", {})
    assert recipe.models[1].parameters["weight"] == Constant(
        0.001, "models.1.parameters.weight", None
    )
    again = load_recipe(recipe.text)
    assert again.text == recipe.text
    assert [entry.model for entry in again.models] == [entry.model for entry in recipe.models]


def test_names_come_from_the_nearest():
    text = "merge_method: linear\nmodels: [a]\n"
    assert load_recipe(text + "metadata: {name: one}\n").name == "one"
    assert load_recipe(text + "metadata: {name: one}\nname: two\n").name == "two"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("BF16", "bfloat16"), ("fp16", "float16"),
        ("half", "float16"), ("torch.float16", "float16"), ("fp32", "float32"),
        ("float", "float32"), ("float32", "float32"), ("float64", "float64"), ("f64", "float64"),
    ],
)  # fmt: skip
def test_dtypes_have_short_forms(written, name):
    assert parse_dtype(written) == name
    text = f"merge_method: linear\nmodels: [a]\nout_dtype: {written}\n"
    assert load_recipe(text).output_dtype == name


# text, id on the Hub, revision
REFERENCES = [
    ("org/name", "org/name", None),
    ("org/name@v1.0", "org/name", "v1.0"),
    ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
    ("gpt2", "gpt2", None),
    ("./folder", None, None),
    ("../folder/x", None, None),
    ("/abs/folder", None, None),
    ("a/b/c", None, None),
    ("~/models/x", None, None),
    ("org/a@b@c", None, None),
]


@pytest.mark.parametrize(("text", "hub_id", "revision"), REFERENCES)
def test_references_to_models(text, hub_id, revision):
    model = ModelRef(text)
    assert (model.hub_id, model.revision) == (hub_id, revision)


def test_two_spellings_of_one_model():
    assert ModelRef("./a/").key == ModelRef("a").key
    assert ModelRef("o/b@main").key == ModelRef("o/b").key
    assert ModelRef("o/b@v1").key != ModelRef("o/b").key
    assert ModelRef("../a").key != ModelRef("a").key


def test_each_model_is_referenced_once_and_the_base_first():
    recipe = load_recipe("merge_method: ties\nbase_model: b\nmodels: [a, ./b, c, a]\n")
    assert [str(model) for model in recipe.referenced()] == ["b", "a", "c"]


def test_recipes_can_be_sent_to_another_process():
    recipe = load_recipe(EXAMPLE)
    for again in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe)):
        assert isinstance(again, Recipe)
        assert again.rules == recipe.rules
        assert again.models == recipe.models


def test_loading_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from mergeconf.recipe import load_recipe, recipe_schema\n"
        "load_recipe('merge_method: linear\\nmodels: [a]\\n'); recipe_schema()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
