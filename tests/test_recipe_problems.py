"""Bad recipes: every problem at once, each with key path, line, column, message and hint."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.errors import RecipeError
from mergeconf.methods import Bounds, Method, Parameter, all_methods
from mergeconf.recipe import load_recipe
from mergeconf.recipe.yaml_scalars import write_yaml


def problems_of(text, methods=None):
    with pytest.raises(RecipeError) as caught:
        load_recipe(text if "\n" in text else text + "\n", methods=methods)
    return caught.value.problems


LINEAR = "merge_method: linear\nmodels:\n  - model: o/a\n  - model: o/b\n"
TIES = "merge_method: ties\nbase_model: o/base\nmodels:\n  - model: o/a\n  - model: o/b\n"
SLERP = "merge_method: slerp\nbase_model: o/a\nmodels: [o/b]\n"
SELECT = "merge_method: parameter_selection\nbase_model: o/base\nmodels: [o/a, o/b]\n"

# What mergekit 0.1.5 answers with exit code 0, or with a traceback after loading the models:
# the first two lists of PEERS.md, as far as they concern the recipe's text.
FROM_PEERS = [
    (TIES + "parameters: {densty: 0.5}", "parameters.densty", 6, 14, "unknown key", "'density'"),
    (TIES + "parameters: {lamda: 0.5}", "parameters.lamda", 6, 14, "unknown key", "'lambda'"),
    (TIES + "parameters: {normalise: true}", "parameters.normalise", 6, 14, "unknown", "normalize"),
    (LINEAR + "dtyp: bfloat16", "dtyp", 5, 1, "unknown key", "did you mean 'dtype'?"),
    (LINEAR + "parameters: {seed: 3}", "parameters.seed", 5, 14, "unknown key", "valid: "),
    (LINEAR + "parameters: {weight: .nan}", "parameters.weight", 5, 22, "not a finite number", ""),
    (LINEAR + "parameters: {weight: [0, -.inf]}", "parameters.weight.1", 5, 26, "not a finite", ""),
    (TIES + "parameters: {density: 5}", "parameters.density", 6, 23, "5 is out of range",
     "'density' is between 0 and 1"),
    (TIES + "parameters:\n  density:\n    - {filter: mlp, value: [0.1, -0.3]}\n    - value: 1",
     "parameters.density.0.value.1", 8, 34, "-0.3 is out of range", "between 0 and 1"),
    (SLERP + "parameters: {t: 7}", "parameters.t", 4, 17, "7 is out of range", "between 0 and 1"),
    ("merge_method: dare-ties\nbase_model: o/x\nmodels: [o/a]", "merge_method", 1, 15,
     "unknown merge method 'dare-ties'", "did you mean 'dare_ties'?"),
    ("merge_method: linear\nmodels:\n  - model: o/a\n    parameters: {weigth: 1}",
     "models.0.parameters.weigth", 4, 18, "unknown key", "did you mean 'weight'?"),
    ("merge_method: linear\nmodels:\n  - model: o/a\n    parameters:\n      weight: heavy",
     "models.0.parameters.weight", 5, 15, "expected a number, found 'heavy'", ""),
    (LINEAR + "chat_template: chatmll", "chat_template", 5, 16, "unknown chat template 'chatmll'",
     "did you mean 'chatml'?"),
    (LINEAR + "modules: {txt: {models: [o/a]}}", "modules", 5, 1, "beside 'models'", "keep one"),
    (LINEAR + "dtype: brain16", "dtype", 5, 8, "unknown dtype 'brain16'", "bfloat16"),
    (LINEAR + "output: {shard_size: 5 XB}", "output.shard_size", 5, 22, "'5 XB' is no size", ""),
    (LINEAR + "output: {shard-size: 5GB}", "output.shard-size", 5, 10, "unknown key", "shard_size"),
]  # fmt: skip

KEYS_AND_KINDS = [
    ("merge_methd: linear\nmodels: [o/a]", "merge_methd", 1, 1, "unknown key", "'merge_method'?"),
    ("models: [o/a]", "merge_method", 1, 1, "missing", "linear"),
    (LINEAR + "take: base_model\nbase_model: o/c", "take", 5, 1, "beside 'merge_method'", "one"),
    (LINEAR + "weight: 1", "weight", 5, 1, "unknown key", "go under 'parameters'"),
    ("merge_method: linear\nmodels:\n  - {model: o/a, weight: 1}", "models.0.weight", 3, 18,
     "unknown key", "go under 'parameters'"),
    ("merge_method: linear\nmodels: o/a", "models", 2, 9, "expected a list, found 'o/a'", ""),
    ("merge_method: linear\nmodels: [3]", "models.0", 2, 10, "expected keys and values", ""),
    ("merge_method: linear\nmodels: [{model: 3}]", "models.0.model", 2, 18, "found 3", "quotes"),
    ("merge_method: linear\nmodels: [{model: }]", "models.0.model", 2, 17, "found nothing", ""),
    ("merge_method: linear\nmodels: [{parameters: {}}]", "models.0.model", 2, 10, "missing", ""),
    ("merge_method: linear\nmodels: ['']", "models.0", 2, 10, "name is empty", ""),
    ("merge_method: linear\nmodels: [{model: [a]}]", "models.0.model", 2, 18, "a list of 1", ""),
    ("merge_method: linear\nmodels: [{model: {modle: a}}]", "models.0.model.modle", 2, 19,
     "unknown key", "did you mean 'model'?"),
    ("merge_method: linear\nmodels: [{model: {model: {path: 3}}}]", "models.0.model.model.path",
     2, 33, "expected text, found 3", ""),
    ("merge_method: linear\nmodels: [{model: {model: {path: a, rev: b}}}]",
     "models.0.model.model.rev", 2, 36, "unknown key", "valid: path, revision"),
    ("merge_method: 3\nmodels: [o/a]", "merge_method", 1, 15, "expected text, found 3", "quotes"),
    (LINEAR + "seed: -1", "seed", 5, 7, "a whole number from 0 to 18446744073709551615", ""),
    (LINEAR + "seed: 18446744073709551616", "seed", 5, 7, "found 18446744073709551616", ""),
    (LINEAR + "seed: 1.5", "seed", 5, 7, "found 1.5", ""),
    (LINEAR + "seed: true", "seed", 5, 7, "found true", ""),
    (LINEAR + "seed: '42'", "seed", 5, 7, "found '42'", ""),
    (LINEAR + "dtype: 16", "dtype", 5, 8, "expected text, found 16", "quotes"),
    (LINEAR + "out_dtype: int8", "out_dtype", 5, 12, "unknown dtype 'int8'", "float16"),
    (LINEAR + "output: 5GB", "output", 5, 9, "expected keys and values, found '5GB'", ""),
    (LINEAR + "output: {shard_size: true}", "output.shard_size", 5, 22, "expected a size", "5GB"),
    (LINEAR + "output: {shard_size: 0}", "output.shard_size", 5, 22, "more than zero bytes", ""),
    (LINEAR + "metadata: [a]", "metadata", 5, 11, "expected keys and values", ""),
    (LINEAR + "name: 1.0", "name", 5, 7, "expected text, found 1", "put it in quotes"),
    (LINEAR + "silence: int8", "silence", 5, 10, "expected a list, found 'int8'", ""),
    (LINEAR + "parameters: [1]", "parameters", 5, 13, "expected keys and values", ""),
    (LINEAR + "parameters: {weight: }", "parameters.weight", 5, 21, "found nothing", ""),
    (LINEAR + "parameters: {weight: []}", "parameters.weight", 5, 22, "the list is empty", ""),
    (LINEAR + "parameters: {weight: [1, [2]]}", "parameters.weight.1", 5, 26, "a list of 1", ""),
    (LINEAR + "parameters: {weight: [1, {value: 2}]}", "parameters.weight.0", 5, 23,
     "expected 'filter' and 'value', found 1", "cases only"),
    (LINEAR + "parameters: {weight: {filter: a}}", "parameters.weight.value", 5, 14, "missing", ""),
    (LINEAR + "parameters: {weight: [{value: 1, fliter: a}]}", "parameters.weight.0.fliter", 5, 34,
     "unknown key", "did you mean 'filter'?"),
    (LINEAR + "parameters: {weight: [{value: [{value: 1}]}]}", "parameters.weight.0.value", 5, 31,
     "cases inside a case", "one list"),
    (LINEAR + "parameters: {weight: [{value: 1, filter: 3}]}", "parameters.weight.0.filter", 5, 42,
     "expected text, found 3", "quotes"),
    (LINEAR + "parameters: {weight: [{value: 1, match: 're:['}]}", "parameters.weight.0.match",
     5, 41, "not a regular expression", "glob"),
    (LINEAR + "parameters: {weight: [{value: 1, layers: 4-2}]}", "parameters.weight.0.layers",
     5, 42, "runs backwards", "2-4"),
    ("merge_method: slerp\nbase_model: o/a\nmodels: [o/b]\ntokenizer: {sauce: base}\n"
     "parameters: {t: 0}", "tokenizer.sauce", 4, 13, "unknown key", "did you mean 'source'?"),
]  # fmt: skip

METHODS_AND_MODELS = [
    ("merge_method: ties\nmodels: [o/a]", "base_model", 1, 1, "missing, and 'ties' needs one",
     "fine-tuned from"),
    ("merge_method: linear\nmodels: []", "models", 2, 1, "at least 1 model, found 0", ""),
    ("merge_method: linear", "models", 1, 1, "'linear' needs at least 1 model, found 0", ""),
    ("merge_method: ties\nbase_model: o/a\nmodels: [o/a]", "models", 3, 1,
     "at least 1 model beside the base, 'o/a', found 0", ""),
    ("merge_method: slerp\nbase_model: o/a\nmodels: [o/a, o/b, o/c]\nparameters: {t: 0.5}",
     "models", 3, 1, "exactly 1 model beside the base, 'o/a', found 2", ""),
    ("merge_method: passthrough\nmodels: [o/a, o/b]", "models", 2, 1, "exactly 1 model, found 2",
     ""),
    (SLERP, "parameters.t", 1, 1, "missing, and 'slerp' needs it", ""),
    (LINEAR + "parameters: {density: 1}", "parameters.density", 5, 14,
     "'linear' has no parameter 'density'", "'linear' takes normalize, weight; 'density' belongs"),
    (SLERP + "parameters: {t: 0.5, normalize: true}", "parameters.normalize", 4, 22,
     "'slerp' has no parameter 'normalize'", "'slerp' takes t; 'normalize' belongs to"),
    ("merge_method: linear\nmodels:\n  - model: o/a\n    parameters: {normalize: false}",
     "models.0.parameters.normalize", 4, 18, "is one value for all models", "move it"),
    (LINEAR + "parameters: {normalize: perhaps}", "parameters.normalize", 5, 25,
     "expected true or false, found 'perhaps'", ""),
    (SELECT + "parameters: {resample: 1.5}", "parameters.resample", 4, 24,
     "expected a whole number or all, found 1.5", ""),
    (SELECT + "parameters: {resample: al}", "parameters.resample", 4, 24, "found 'al'", "'all'"),
    (SELECT + "parameters: {resample: [1, 2]}", "parameters.resample", 4, 24,
     "cannot be a gradient", "layers and value"),
    ("take: base_model\nmodels: [o/a]", "take", 1, 7, "no 'base_model' to take from", "set"),
    ("take: o/c\nmodels: [o/a]", "take", 1, 7, "'o/c' is no model of this recipe", "'o/a'"),
    ("take: base_model\nbase_model: o/b\nparameters: {weight: 1}", "parameters.weight", 3, 14,
     "no merge method here takes parameters", ""),
    (LINEAR + "tokenizer: {source: base}", "tokenizer", 5, 12, "there is no 'base_model'", ""),
    (LINEAR + "tokenizer_source: base", "tokenizer_source", 5, 19, "there is no 'base_model'", ""),
    (TIES + "tokenizer: {source: base}\ntokenizer_source: base", "tokenizer_source", 7, 1,
     "given beside 'tokenizer'", "keep one"),
]  # fmt: skip

RULE = TIES + "rules:\n  - "
RULES = [
    (RULE + "{match: '*'}", "rules.0", 7, 5, "does nothing", ""),
    (RULE + "{drop: true}", "rules.0", 7, 5, "fits no tensor: needs 'match'", '"*" fits all'),
    (RULE + "{match: '*', take: o/a, drop: true}", "rules.0.drop", 7, 29, "'take' and 'drop'", ""),
    (RULE + "{match: '*', merge_method: linear, take: o/a}", "rules.0.take", 7, 40,
     "'merge_method' and 'take' in one rule", "keep one"),
    (RULE + "{match: '*', drop: false}", "rules.0.drop", 7, 24, "false has no meaning", ""),
    (RULE + "{match: '*', drop: maybe}", "rules.0.drop", 7, 24, "expected true or false", ""),
    (RULE + "{match: '*', take: base}", "rules.0.take", 7, 24, "'base' is no model", "base_model"),
    (RULE + "{match: '*', take: o/a, parameters: {weight: 1}}", "rules.0.parameters", 7, 29,
     "have no effect beside 'take'", ""),
    (RULE + "{match: '*', merge_method: linaer}", "rules.0.merge_method", 7, 32,
     "unknown merge method 'linaer'", "did you mean 'linear'?"),
    (RULE + "{filter: a, match: '*', drop: true}", "rules.0.filter", 7, 6, "unknown key", "match"),
    (RULE + "{matches: '*', drop: true}", "rules.0.matches", 7, 6, "unknown key", "'match'?"),
    (RULE + "{match: 're:(', drop: true}", "rules.0.match", 7, 13, "not a regular", "glob"),
    (RULE + "{match: '', drop: true}", "rules.0.match", 7, 13, "the pattern is empty", "every"),
    (RULE + "{match: 3, drop: true}", "rules.0.match", 7, 13,
     "expected a pattern for tensor names, found 3", "*.self_attn.*"),
    (RULE + "{layers: x, drop: true}", "rules.0.layers", 7, 14, "names no layers", "0-7"),
    (RULE + "{layers: [], drop: true}", "rules.0.layers", 7, 14, "list of layers is empty", ""),
    (RULE + "{layers: 0, merge_method: linear, parameters: {density: 1}}",
     "rules.0.parameters.density", 7, 52, "'linear' has no parameter 'density'", "belongs to"),
    (RULE + "{layers: 0, parameters: {density: 1.5}}", "rules.0.parameters.density", 7, 39,
     "1.5 is out of range", "between 0 and 1"),
    (RULE + "{layers: 0, merge_method: slerp, parameters: {t: 0.5}}", "models", 3, 1,
     "'slerp' needs exactly 1 model beside the base, 'o/base', found 2", ""),
    (TIES + "rules: {match: '*'}", "rules", 6, 8, "expected a list, found keys and values", ""),
    (TIES + "rules: ['*']", "rules.0", 6, 9, "expected keys and values, found '*'", ""),
    ("take: base_model\nbase_model: o/b\nmodels: [o/a]\n"
     "rules: [{match: '*', parameters: {weight: 1}}]", "rules.0.parameters", 4, 34,
     "no merge_method to set them for", "give the rule a merge_method"),
    (LINEAR + "rules: [{layers: 0, merge_method: ties}]", "base_model", 1, 1,
     "missing, and 'ties' needs one", ""),
]  # fmt: skip

KEYS_AND_KINDS += [
    (LINEAR + "parameters: {weight:1}", "parameters.weight:1", 5, 22, "found nothing", "a space"),
    ("merge_method: linear\nmodels: [{model: o/a, 'parameters:1': }]", "models.0.parameters:1", 2,
     23, "unknown key", "write a space after the colon"),
]  # fmt: skip

NESTED = [
    ("merge_method: passthrough\nmodels:\n  - model: {merge_method: ties, models: [o/a]}",
     "models.0.model.base_model", 3, 5, "missing", ""),
    ("merge_method: passthrough\nmodels:\n  - merge_method: lineer\n    models: [o/a]",
     "models.0.merge_method", 3, 19, "unknown merge method", "did you mean 'linear'?"),
    ("merge_method: passthrough\nmodels: [{model: {recipe: 5}}]", "models.0.model.recipe", 2, 27,
     "expected the path of a recipe, found 5", ""),
    (LINEAR + "definitions: [x]", "definitions", 5, 14, "expected names and merges, found a", ""),
    (LINEAR + "definitions: {x: 5}", "definitions.x", 5, 18, "expected a merge, found", ""),
]  # fmt: skip

ADAPTERS = [
    ("merge_method: linear\nmodels: [o/a+o/b+o/c]", "models.0", 2, 10,
     "'o/a+o/b+o/c' is not a model and one adapter", "add each to the merge"),
    ("merge_method: linear\nmodels: [o/a+]", "models.0", 2, 10, "'o/a+' is not a model and", ""),
    (LINEAR + "base_model: +o/a", "base_model", 5, 13, "'+o/a' is not a model and", ""),
    ("merge_method: linear\nmodels: [{model: {model: o/a, lora: 5}}]", "models.0.model.lora", 2,
     37, "expected a folder's or a repository's name, found 5", ""),
    ("merge_method: linear\nmodels: [{model: {model: o/a, lora: {path: 5}}}]",
     "models.0.model.lora.path", 2, 44, "expected text, found 5", ""),
    ("merge_method: linear\nmodels: [{model: {model: o/a, lora: {path: x, rev: y}}}]",
     "models.0.model.lora.rev", 2, 47, "unknown key", "valid: path, revision"),
]  # fmt: skip

TOKENS = TIES + "tokenizer: {source: base, tokens: {a: "
TOKENIZERS = [
    (TIES + "tokenizer: {source: 5}", "tokenizer.source", 6, 21, "expected a model's", "quote"),
    (TIES + "tokenizer: {sources: base}", "tokenizer.sources", 6, 13, "unknown key", "'source'?"),
    (TIES + "tokenizer: {pad_to_multiple_of: 0}", "tokenizer.pad_to_multiple_of", 6, 33,
     "expected more than 0, found 0", ""),
    (TIES + "tokenizer: {pad_to_multiple_of: 0.5}", "tokenizer.pad_to_multiple_of", 6, 33,
     "expected a whole number, found 0.5", ""),
    (TIES + "tokenizer: {tokens: [a]}", "tokenizer.tokens", 6, 21, "expected keys and values", ""),
    (TOKENS + "{source: o/c}}}", "tokenizer.tokens.a.source", 6, 48,
     "'o/c' is no model of this recipe", ""),
    (TOKENS + "{source: {kind: zeros}}}}", "tokenizer.tokens.a.source.kind", 6, 55,
     "unknown kind 'zeros'", "did you mean 'zero'?"),
    (TOKENS + "{source: {kind: zero, model: o/a}}}}", "tokenizer.tokens.a.source.model", 6, 61,
     "unknown key", ""),
    (TOKENS + "{source: {kind: model_token, token: b}}}}", "tokenizer.tokens.a.source", 6, 48,
     "a model_token needs the 'model'", ""),
    (TOKENS + "{source: {kind: model_token, model: o/a}}}}", "tokenizer.tokens.a.source", 6, 48,
     "either 'token' or 'token_id'; neither", ""),
    (TOKENS + "{source: {kind: model_token, model: o/a, token: b, token_id: 1}}}}",
     "tokenizer.tokens.a.source", 6, 48, "either 'token' or 'token_id'; both", ""),
    (TOKENS + "{source: {kind: model_token, model: o/a, token_id: -1}}}}",
     "tokenizer.tokens.a.source.token_id", 6, 90, "expected 0 or more, found -1", ""),
    (TOKENS + "{source: {kind: model_token, model: o/a, token: 7}}}}",
     "tokenizer.tokens.a.source.token", 6, 87, "expected text, found 7", "quotes"),
    (TOKENS + "{forced: true}}}", "tokenizer.tokens.a.forced", 6, 40, "unknown key",
     "did you mean 'force'?"),
    (TOKENS + "{force: 1}}}", "tokenizer.tokens.a.force", 6, 47, "expected true or false", ""),
    (LINEAR + "chat_template: 'nonsense'", "chat_template", 5, 16, "unknown chat template",
     "{{ }}"),
    (LINEAR + "chat_template: '{% for m in messages %}{{ m }}'", "chat_template", 5, 16,
     "is no sound Jinja template: line 1", ""),
    (LINEAR + "chat_template: 5", "chat_template", 5, 16, "expected text, found 5", "quotes"),
]  # fmt: skip

SLICES = "merge_method: linear\nslices:\n"
PASS = "merge_method: passthrough\nslices:\n"
A = "{model: o/a, layer_range: [0, 4]}"
SLICED = [
    # writes a model with -2 layers in mergekit
    (PASS + "  - sources: [{model: o/a, layer_range: [4, 2]}]", "slices.0.sources.0.layer_range", 3,
     41, "[4, 2] holds no layer", "write [2, 4]"),
    (PASS + "  - sources: [{model: o/a, layer_range: [3, 3]}]", "slices.0.sources.0.layer_range", 3,
     41, "[3, 3] holds no layer", "write [3, 4] for layer 3 alone"),
    (PASS + "  - sources: [{model: o/a, layer_range: [-4, -1]}]", "slices.0.sources.0.layer_range",
     3, 41, "counts from the end", "layers count from 0"),
    (PASS + "  - sources: [{model: o/a, layer_range: 0-4}]", "slices.0.sources.0.layer_range", 3,
     41, "expected a list, found '0-4'", ""),
    (PASS + "  - sources: [{model: o/a, layer_range: [4]}]", "slices.0.sources.0.layer_range", 3,
     41, "expected 2 values, found 1", ""),
    (PASS + "  - sources: [{model: o/a, layer_range: [0, 2, 4]}]", "slices.0.sources.0.layer_range",
     3, 41, "expected 2 values, found 3", ""),
    (PASS + "  - sources: [{model: o/a, layer_range: [0, four]}]",
     "slices.0.sources.0.layer_range.1", 3, 45, "expected a whole number, found 'four'", ""),
    (PASS + "  - sources: [{model: o/a}]", "slices.0.sources.0.layer_range", 3, 15, "missing", ""),
    (PASS + "  - sources: [{layer_range: [0, 1]}]", "slices.0.sources.0.model", 3, 15, "missing",
     ""),
    (PASS + f"  - sources: [{A}]\n    merge_method: linear", "slices.0.merge_method", 4, 5,
     "unknown key", "rules: [{layers: 0-7, merge_method"),
    (PASS + "  - sources: []", "slices.0.sources", 3, 14, "the list is empty", "names a model"),
    (PASS + "  - {parameters: {}}", "slices.0.sources", 3, 5, "missing", ""),
    ("merge_method: passthrough\nslices: []", "slices", 2, 9, "the list is empty", "'sources'"),
    (SLICES + f"  - sources: [{A}, {{model: o/b, layer_range: [0, 5]}}]", "slices.0.sources", 3, 14,
     "ranges of different lengths: o/a 4, o/b 5", "one layer of every source"),
    (SLICES + f"  - sources: [{A}, {{model: o/a, layer_range: [4, 8]}}]", "slices.0.sources.1", 3,
     50, "'o/a' is a source of this slice before, as sources.0", ""),
    (PASS + f"  - sources: [{A}, {{model: o/b, layer_range: [0, 4]}}]", "slices.0.sources", 3, 5,
     "exactly 1 model, found 2", ""),
    ("merge_method: ties\nslices:\n  - sources: [" + A + "]", "base_model", 1, 1,
     "missing, and 'ties' needs one", ""),
    ("merge_method: ties\nbase_model: o/base\nslices:\n  - sources: [" + A + "]",
     "slices.0.sources", 4, 14, "uses layers of the base, 'o/base', and no source is the base",
     "with its layer_range"),
    ("merge_method: slerp\nbase_model: o/a\nslices:\n  - sources: [" + A + "]\n"
     "parameters: {t: 0.5}", "slices.0.sources", 4, 5, "exactly 1 model beside the base", ""),
    (SLICES + f"  - sources: [{A}]\n    parameters: {{wieght: 1}}", "slices.0.parameters.wieght", 4,
     18, "unknown key", "did you mean 'weight'?"),
    (SLICES + "  - sources: [{model: o/a, layer_range: [0, 4], parameters: {weight: heavy}}]",
     "slices.0.sources.0.parameters.weight", 3, 70, "expected a number", ""),
    ("merge_method: slerp\nbase_model: o/b\nslices:\n  - sources: [" + A + ", {model: o/b, "
     "layer_range: [0, 4]}]", "slices.0.parameters.t", 4, 5, "missing, and 'slerp' needs it", ""),
    (LINEAR + "slices: [{sources: [" + A + "]}]", "slices", 5, 1, "given beside 'models'", ""),
    (PASS + f"  - sources: [{A}]\nmodules: {{text: {{models: [o/a]}}}}", "modules", 4, 1,
     "given beside 'slices'", "keep one of them"),
    ("merge_method: linear\nmodules: {}", "modules", 2, 10, "no module is named", "for example"),
    ("merge_method: linear\nmodules: {text: {}}", "modules.text", 2, 11,
     "needs 'models' or 'slices'", ""),
    ("merge_method: linear\nmodules: {text: {models: []}}", "modules.text.models", 2, 26,
     "the list is empty", ""),
    ("merge_method: linear\nmodules: {text: {models: [o/a], slices: [{sources: [" + A + "]}]}}",
     "modules.text.slices", 2, 33, "given beside 'models'", "keep one"),
    ("merge_method: linear\nmodules: {text: {modles: [o/a]}}", "modules.text.modles", 2, 18,
     "unknown key", "did you mean 'models'?"),
]  # fmt: skip

TABLE = (
    FROM_PEERS
    + KEYS_AND_KINDS
    + METHODS_AND_MODELS
    + RULES
    + SLICED
    + NESTED
    + ADAPTERS
    + TOKENIZERS
)


@pytest.mark.parametrize(("text", "where", "line", "column", "message", "hint"), TABLE)
def test_one_mistake_is_one_problem_in_its_place(text, where, line, column, message, hint):
    problems = problems_of(text)
    assert [str(problem.where) for problem in problems] == [where], [str(p) for p in problems]
    (problem,) = problems
    assert message in problem.message
    assert hint in problem.hint
    assert (problem.location.line, problem.location.column) == (line, column)
    assert problem.location.file == "<recipe>"
    assert problem.severity == "error"
    assert problem.code == ""


def test_every_message_is_in_the_house_style():
    for text, *_ in TABLE:
        for problem in problems_of(text):
            said = f"{problem.message} {problem.hint}"
            assert not re.search(r"Input should|pydantic|https?:|Error|please", said), said
            assert not problem.message[:1].isupper()
            assert not problem.message.endswith(".")
            assert not problem.hint.endswith((".", ";"))


def test_ten_mistakes_are_ten_problems_in_the_order_of_the_text():
    text = """\
merge_method: ties
models:
  - model: o/a
    parameters: {weigth: 1}
  - model: 7
parameters: {density: [0.5, 1.2], normalize: perhaps}
dtype: bf17
seed: -4
tokeniser: base
rules:
  - {match: "re:[", drop: true}
  - {layers: 3-1, merge_method: tiess}
  - {match: "*", take: o/zz}
chat_template: atuo
"""
    found = [(p.where, p.location.line) for p in problems_of(text)]
    assert found == [
        ("base_model", 1),
        ("models.0.parameters.weigth", 4),
        ("models.1.model", 5),
        ("parameters.density.1", 6),
        ("parameters.normalize", 6),
        ("dtype", 7),
        ("seed", 8),
        ("tokeniser", 9),
        ("rules.0.match", 11),
        ("rules.1.layers", 12),
        ("rules.1.merge_method", 12),
        ("rules.2.take", 13),
        ("chat_template", 14),
    ]


def test_required_parameters_of_each_model_name_the_models_without():
    weight = Parameter("weight", "weight", "float", True, None, Bounds(), required=True)
    methods = {
        "need": Method("need", lambda: None, "optional", 1, None, False, {"weight": weight}, "", {})
    }
    text = "merge_method: need\nbase_model: o/base\nmodels:\n  - o/base\n  - o/a\n"
    text += "  - {model: o/b, parameters: {weight: 1}}\n  - o/c\n"
    (problem,) = problems_of(text, methods)
    assert problem.where == "parameters.weight"
    assert problem.message == "missing for o/a, o/c, and 'need' needs it"
    assert "under each model" in problem.hint
    assert load_recipe(text + "parameters: {weight: 2}\n", methods=methods)
    # a misspelled one is not missing as well
    (problem,) = problems_of(text + "parameters: {wieght: 2}\n", methods)
    assert problem.where == "parameters.wieght"


def test_methods_with_a_range_of_models_or_without_parameters():
    methods = {
        "few": Method("few", lambda: None, "unused", 2, 3, False, {}, "", {}),
    }
    for models, message in (
        ("[a]", "'few' needs at least 2 models, found 1"),
        ("[a, b, c, d]", "'few' needs at most 3 models, found 4"),
    ):
        (problem,) = problems_of(f"merge_method: few\nmodels: {models}\n", methods)
        assert problem.message == message
    text = "merge_method: few\nmodels: [a, b]\nparameters: {weight: 1}\n"
    (problem,) = problems_of(text, methods)
    assert problem.message == "'few' takes no parameters"


def test_whole_numbers_are_no_gradients_in_cases_either():
    text = SELECT + "parameters: {resample: [{filter: a, value: [1, 2]}, {value: [3]}]}\n"
    assert [p.where for p in problems_of(text)] == [
        "parameters.resample.0.value",
        "parameters.resample.1.value",
    ]


def test_the_structure_of_what_is_not_supported_yet_is_checked_too():
    text = "merge_method: linear\nslices:\n  - sources: [{model: a, layer_range: [1]}]\n"
    found = {p.where: p.message for p in problems_of(text)}
    assert found["slices.0.sources.0.layer_range"] == "expected 2 values, found 1"
    text = TIES + "tokenizer: {source: base, pad_to_multiple_of: 0}\n"
    assert "expected more than 0, found 0" in [p.message for p in problems_of(text)]


def test_parameters_of_unknown_methods_are_only_checked_for_names_that_nobody_has():
    text = "merge_method: tise\nbase_model: o/x\nmodels: [o/a]\n"
    text += "parameters: {density: 0.5, densty: 1}\n"
    assert [p.where for p in problems_of(text)] == ["merge_method", "parameters.densty"]


WARNINGS = [
    (TIES + "parameters: {int8_mask: true}", "ignored-parameter", "parameters.int8_mask", 6, 14,
     "has no effect: masks are"),
    ("merge_method: ties\nbase_model: o/x\nmodels:\n  - model: o/x\n"
     "    parameters: {weight: 1, density: 5}\n  - o/a", "base-parameters",
     "models.0.parameters.weight", 5, 18, "'o/x' is the base"),
    (LINEAR + "  - o/a", "duplicate-model", "models.2", 5, 5, "listed before, as models.0"),
    ("merge_method: linear\nbase_model: o/x\nmodels: [o/a]", "base-not-merged", "base_model", 2, 1,
     "'linear' merges listed models only"),
    ("merge_method: ties\nbase_model: o/x\nmodels:\n  - model: o/x\n"
     "    parameters: {t: 1}\n  - o/a", "base-parameters", "models.0.parameters.t", 5, 18,
     "'o/x' is the base"),
    ("merge_method: linear\nmodels: [{model: {model: o/a, override_architecture: X}}]",
     "override-architecture", "models.0.model.override_architecture", 2, 31, "has no effect"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "where", "line", "column", "message"), WARNINGS)
def test_what_is_harmless_is_a_warning_that_can_be_silenced(
    text, code, where, line, column, message
):
    warning = load_recipe(text + "\n").warnings[0]
    assert (warning.code, warning.severity, warning.where) == (code, "warning", where)
    assert message in warning.message
    assert (warning.location.line, warning.location.column) == (line, column)
    silenced = load_recipe(f"{text}\nsilence: [{code}]\n")
    assert silenced.warnings == ()
    assert silenced.silenced == {code}


def test_what_is_not_worth_a_warning():
    for text in (
        "merge_method: linear\nbase_model: o/a\nmodels: [o/a, o/b]\n",
        "merge_method: ties\nbase_model: o/x\nmodels: [o/x, o/a]\n",
        "merge_method: linear\nbase_model: o/x\nmodels: [o/a]\n"
        "rules: [{match: 'a', take: base_model}]\n",
        TIES + "rules: [{layers: 0, merge_method: linear}]\n",
    ):
        assert load_recipe(text).warnings == ()


def test_files_that_cannot_be_read(tmp_path):
    for path, message in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert message in caught.value.problems[0].message
        assert str(path) in str(caught.value)
    huge = tmp_path / "model.safetensors"
    huge.write_bytes(b"x" * 3_000_000)
    with pytest.raises(RecipeError, match="too large"):
        load_recipe(huge)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe("nul\0byte.yaml")


@pytest.mark.parametrize(
    ("text", "found"), [("\n", "nothing"), ("- a\n- b\n", "a list of 2"), ("text\n", "'text'")]
)
def test_what_is_no_mapping(text, found):
    (problem,) = problems_of(text)
    assert problem.message.endswith(f"found {found}")
    assert problem.location.line == 1


def test_mappings_that_no_recipe_can_hold():
    endless = {}
    endless["models"] = [endless]
    for data, message in (
        ({"merge_method": object()}, "cannot hold a object"),
        ({"a": {"b": [b"x"]}}, "a.b.0: a recipe cannot hold a bytes"),
        (endless, "inside itself"),
        ({"seed": 10**5000}, "seed: a number of 16610 bits is too large"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.sampled_from(
        ["o/a", "base_model", "linear", "ties", "re:(", "*", "0-3", "all", "", "bf16", "5GB"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["model", "models", "merge_method", "parameters", "weight", "value", "filter", "match",
         "layers", "take", "drop", "rules", "base_model", "slices", "sources", "layer_range",
         "tokenizer", "source", "tokens", "output", "shard_size", "seed", "dtype", "metadata",
         "modules", "definitions", "tokenizer_source", "silence", "name", "x"]), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip
SKELETON = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(
        ["merge_method", "models", "base_model", "parameters", "rules", "seed", "output", "take",
         "tokenizer", "slices", "modules", "definitions", "metadata", "silence", "dtype"], JUNK)
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(SKELETON)
def test_whatever_is_written_is_loaded_or_refused_in_plain_words(data):
    try:
        load_recipe("# written\n" + write_yaml(data))
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.location is not None
            said = f"{problem.message} {problem.hint}"
            assert not re.search(r"Input should|pydantic|https?:|validator", said), said


@settings(max_examples=100, deadline=None)
@given(SKELETON)
def test_a_mapping_is_answered_as_its_text_is(data):
    def answer(source):
        try:
            recipe = load_recipe(source)
        except RecipeError as error:
            return sorted((p.where, p.message, p.hint) for p in error.problems)
        return recipe.method, recipe.models and recipe.models[0].model, recipe.seed

    assert answer(data) == answer("# written\n" + write_yaml(data))


def test_the_methods_of_this_table_are_there():
    assert {"linear", "ties", "slerp", "passthrough", "parameter_selection"} <= set(all_methods())
