"""The JSON Schema for editors, checked with a small validator of the keywords that it uses."""

import json
import re

import pytest

from mergeconf.methods import all_methods
from mergeconf.recipe import load_recipe, recipe_schema
from mergeconf.recipe.schema import Document
from mergeconf.recipe.yaml_source import read_documents

SCHEMA = recipe_schema()
TYPES = {
    "string": str, "object": dict, "array": list, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip
IGNORED = {"description", "enumDescriptions", "deprecated", "$schema", "$defs", "default", "title"}


def is_type(data, name):
    if isinstance(data, bool):
        return name == "boolean"
    return isinstance(data, TYPES[name])


def valid(data, schema):
    """Tell whether data fits a schema; an unknown keyword is an error of the test."""
    return all(holds(data, schema, key, part) for key, part in schema.items() if key not in IGNORED)


def holds(data, schema, key, part):
    number = isinstance(data, (int, float)) and not isinstance(data, bool)
    match key:
        case "$ref":
            return valid(data, SCHEMA["$defs"][part.removeprefix("#/$defs/")])
        case "type":
            return is_type(data, part)
        case "enum":
            return any(data == one and type(data) is type(one) for one in part)
        case "const":
            return data == part
        case "anyOf":
            return any(valid(data, one) for one in part)
        case "allOf":
            return all(valid(data, one) for one in part)
        case "if":
            return not valid(data, part) or valid(data, schema["then"])
        case "then":
            return True
        case "properties":
            return not isinstance(data, dict) or all(
                valid(data[name], one) for name, one in part.items() if name in data
            )
        case "additionalProperties":
            if not isinstance(data, dict):
                return True
            rest = [
                value for name, value in data.items() if name not in schema.get("properties", {})
            ]
            return all(
                (isinstance(part, dict) and valid(value, part)) or part is True for value in rest
            )
        case "propertyNames":
            return not isinstance(data, dict) or all(valid(name, part) for name in data)
        case "required":
            return not isinstance(data, dict) or set(part) <= data.keys()
        case "items":
            return not isinstance(data, list) or all(valid(item, part) for item in data)
        case "prefixItems":
            return not isinstance(data, list) or all(map(valid, data, part))
        case "minItems":
            return not isinstance(data, list) or len(data) >= part
        case "maxItems":
            return not isinstance(data, list) or len(data) <= part
        case "minimum":
            return not number or data >= part
        case "maximum":
            return not number or data <= part
        case "exclusiveMinimum":
            return not number or data > part
        case "exclusiveMaximum":
            return not number or data < part
    raise AssertionError(f"the validator does not know {key!r}")


def parse(text):
    return read_documents(text, "f")[0].data


BASE = "merge_method: ties\nbase_model: o/x\nmodels: [o/a, {model: o/b, parameters: {weight: 1}}]\n"
GOOD = [
    BASE,
    BASE + "parameters: {density: [0, 1], normalize: yes, lambda: [{filter: mlp, value: 0.5}]}\n",
    BASE + "parameters: {int8_mask: true, weight: {value: [1, 2]}}\n",
    BASE + "rules: [{match: '*', merge_method: linear, parameters: {weight: 1}}, "
    "{layers: [0, -1], take: base_model}, {layers: 0-7, drop: true}, "
    "{match: a, parameters: {weight: 1}}]\n",
    BASE
    + "seed: 18446744073709551615\ndtype: bf16\nout_dtype: float16\noutput: {shard_size: 5GB}\n",
    "take: base_model\nbase_model: {model: o/x}\nmetadata: {name: a, tags: [b]}\nsilence: [x]\n",
    "merge_method: parameter_selection\nmodels: [a]\nbase_model: b\nparameters: {resample: all}\n",
    "merge_method: linear\nmodels:\nparameters:\n",
]
BAD = [
    BASE + "dtyp: bf16\n",
    BASE + "parameters: {densty: 1}\n",
    BASE + "parameters: {density: 1.5}\n",
    BASE + "parameters: {density: [0, 2]}\n",
    BASE + "parameters: {normalize: perhaps}\n",
    BASE + "parameters: {weight: heavy}\n",
    BASE + "parameters: {weight: [{fliter: a, value: 1}]}\n",
    BASE + "rules: [{match: '*', merge_method: linear, parameters: {density: 1}}]\n",
    BASE + "rules: [{math: '*', drop: true}]\n",
    BASE + "seed: -1\n",
    BASE + "dtype: bf17\n",
    "merge_method: dare-ties\nbase_model: o/x\nmodels: [o/a]\n",
    "merge_method: parameter_selection\nmodels: [a]\nbase_model: b\nparameters: {resample: al}\n",
]
MERGES = [
    "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 4]}]}]\n",
    "merge_method: linear\nmodels: [{model: {merge_method: ties, models: [a]}}]\n",
    "merge_method: linear\nmodels: [{model: {recipe: b}}]\n",
    "merge_method: linear\nmodules: {text: {models: [a]}}\ntokenizer: {source: union}\n",
    "merge_method: linear\nmodels: [a]\ndefinitions: {a: {merge_method: linear, models: [b]}}\n",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes_fit_the_schema(text):
    assert valid(parse(text), SCHEMA)


@pytest.mark.parametrize("text", GOOD[:-1])
def test_good_recipes_can_be_loaded(text):
    assert load_recipe(text)


@pytest.mark.parametrize("text", BAD)
def test_bad_recipes_do_not_fit(text):
    assert not valid(parse(text), SCHEMA)


@pytest.mark.parametrize("text", MERGES)
def test_merges_of_merges_fit_the_schema(text):
    assert valid(parse(text), SCHEMA)


def test_every_method_and_parameter_is_in_the_schema():
    properties = SCHEMA["$defs"]["Document"]["properties"]
    listed = properties["merge_method"]["anyOf"][0]["enum"]
    assert listed == list(all_methods())
    named = SCHEMA["$defs"]["Parameters"]["properties"]
    for method in all_methods().values():
        for name in method.parameters:
            assert method.name in named[name]["description"]
        for name in method.ignored:
            assert name in named


def test_every_key_is_described():
    for part in (
        "Document", "RuleItem", "ModelItem", "Output", "Slice", "SliceSource", "Module",
        "Tokenizer", "TokenEmbedding",
    ):  # fmt: skip
        for name, field in SCHEMA["$defs"][part]["properties"].items():
            assert field.get("description"), f"{part}.{name}"
    assert set(Document.model_fields) == set(SCHEMA["$defs"]["Document"]["properties"])


def test_the_schema_is_json_and_all_its_references_lead_somewhere():
    text = json.dumps(SCHEMA)
    assert json.loads(text) == SCHEMA
    references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', text)
    assert len(references) > 20
    assert set(references) <= set(SCHEMA["$defs"])
