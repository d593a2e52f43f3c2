"""What is decided for one tensor: rules, precedence, origins; and patterns that do nothing."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeconf.errors import RecipeError
from mergeconf.layers import place_of, stacks_of
from mergeconf.methods import Bounds, Method, Parameter
from mergeconf.recipe import Decider, check_names, decide, load_recipe


def parameter(name, kind="float", default=None, *, per_model=False, required=False):
    argument = f"{name}_" if name == "lambda" else name
    return Parameter(name, argument, kind, per_model, default, Bounds(), required=required)


def method(name, base, *parameters, models=(1, None)):
    return Method(
        name, lambda: None, base, *models, False, {p.name: p for p in parameters}, "", {}
    )  # fmt: skip


METHODS = {
    made.name: made
    for made in (
        method("mix", "unused", parameter("weight", default=1.0, per_model=True)),
        method(
            "push",
            "required",
            parameter("weight", default=1.0, per_model=True),
            parameter("lambda", default=1.0),
            parameter("normalize", "bool", False),
        ),
        method("need", "optional", parameter("weight", per_model=True, required=True)),
    )
}
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(12)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
STACKS = stacks_of(NAMES)
PLACES = {name: place_of(name, STACKS) for name in NAMES}


def load(text):
    return load_recipe("\n" + text, methods=METHODS)


def found(recipe, name):
    return decide(recipe, name, PLACES[name], methods=METHODS)


RULES = """\
merge_method: push
base_model: org/base
models:
  - {model: org/a, parameters: {weight: 0.25}}
  - org/base
  - {model: org/b}
parameters: {weight: 0.5, lambda: 2, normalize: yes}
rules:
  - {match: "model.embed_tokens.*", take: org/b}
  - {match: "*norm*", drop: true}
  - {match: "*.self_attn.*", layers: 0-3, merge_method: mix, parameters: {weight: [0, 11]}}
  - {layers: -1, parameters: {lambda: 3}}
"""


def test_rules_decide_in_order_and_the_recipe_the_rest():
    recipe = load(RULES)
    by_rule = {name: found(recipe, name).rule for name in NAMES}
    assert by_rule["model.embed_tokens.weight"] == 0
    assert by_rule["model.norm.weight"] == 1
    assert by_rule["model.layers.11.input_layernorm.weight"] == 1  # before rule 3
    assert by_rule["model.layers.3.self_attn.q_proj.weight"] == 2
    assert by_rule["model.layers.4.self_attn.q_proj.weight"] is None
    assert by_rule["model.layers.11.mlp.up_proj.weight"] == 3
    assert by_rule["lm_head.weight"] is None


def test_each_decision_says_one_thing_to_do():
    recipe = load(RULES)
    taken = found(recipe, "model.embed_tokens.weight")
    assert (taken.method, str(taken.take), taken.drop, taken.arguments) == (
        None,
        "org/b",
        False,
        {},
    )
    dropped = found(recipe, "model.norm.weight")
    assert (dropped.method, dropped.take, dropped.drop) == (None, None, True)
    assert str(dropped.location) == "<recipe>:11:5"
    merged = found(recipe, "lm_head.weight")
    assert (merged.method, merged.take, merged.drop) == ("push", None, False)


def test_models_are_without_the_base_where_the_method_uses_one():
    recipe = load(RULES)
    pushed = found(recipe, "lm_head.weight")
    assert [str(model) for model in pushed.models] == ["org/a", "org/b"]
    assert str(pushed.base) == "org/base"
    mixed = found(recipe, "model.layers.0.self_attn.q_proj.weight")
    assert [str(model) for model in mixed.models] == ["org/a", "org/base", "org/b"]
    assert mixed.base is None


def test_arguments_and_where_they_come_from():
    recipe = load(RULES)
    pushed = found(recipe, "lm_head.weight")
    assert pushed.arguments == {"weight": (0.25, 0.5), "lambda_": 2.0, "normalize": True}
    origins = [origin for resolved in pushed.parameters for origin in resolved.origins]
    assert [(origin.where, str(origin.location), origin.how) for origin in origins] == [
        ("models.0.parameters.weight", "<recipe>:5:41", "0.25"),
        ("parameters.weight", "<recipe>:8:22", "0.5"),
        ("parameters.lambda", "<recipe>:8:35", "2"),
        ("parameters.normalize", "<recipe>:8:49", "true"),
    ]
    # the rule's own parameter wins over the model's, as a gradient over the whole depth
    mixed = found(recipe, "model.layers.3.self_attn.q_proj.weight")
    assert mixed.arguments == {"weight": (3.0, 3.0, 3.0)}
    assert mixed.parameters[0].origins[0].how == "gradient [0, 11] at depth 0.2727"
    # a rule that only sets parameters keeps the recipe's method and its other parameters
    last = found(recipe, "model.layers.11.mlp.up_proj.weight")
    assert last.arguments == {"weight": (0.25, 0.5), "lambda_": 3.0, "normalize": True}
    assert last.method == "push"


def test_defaults_say_so():
    recipe = load("merge_method: push\nbase_model: o/b\nmodels: [o/x, o/y]\n")
    decision = found(recipe, "lm_head.weight")
    assert decision.arguments == {"weight": (1.0, 1.0), "lambda_": 1.0, "normalize": False}
    origins = [origin for resolved in decision.parameters for origin in resolved.origins]
    assert {(origin.how, origin.where, origin.location) for origin in origins} == {
        ("default", "", None)
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, "constant", "case", "gradient"]), min_size=3, max_size=3))
def test_precedence_is_rule_model_recipe_default(levels):
    """An oracle by hand: the strongest level that has a value for the tensor wins."""
    values = {"rule": 10.0, "model": 20.0, "recipe": 30.0}
    written = {}
    for (level, number), form in zip(values.items(), levels, strict=True):
        written[level] = {
            None: "{}",
            "constant": f"{{weight: {number}}}",
            "case": f"{{weight: [{{filter: mlp, value: {number}}}]}}",
            "gradient": f"{{weight: [{number}, {number}]}}",
        }[form]
    recipe = load(
        f"merge_method: mix\nmodels: [{{model: o/x, parameters: {written['model']}}}, o/y]\n"
        f"parameters: {written['recipe']}\n"
        f"rules: [{{match: '*proj*', merge_method: mix, parameters: {written['rule']}}}]\n"
    )
    forms = dict(zip(values, levels, strict=True))

    def expected(name, ruled, own):
        for level in ("rule", "model", "recipe"):
            applies = {"rule": ruled, "model": own, "recipe": True}[level]
            if applies and forms[level] and (forms[level] != "case" or "mlp" in name):
                return values[level]
        return 1.0

    decider = Decider(recipe, METHODS)
    for name in NAMES:
        decision = decider.decide(name, PLACES[name])
        ruled = "proj" in name
        assert decision.rule == (0 if ruled else None)
        assert decision.arguments["weight"] == (
            expected(name, ruled, True), expected(name, ruled, False)
        )  # fmt: skip


def test_one_decider_agrees_with_a_fresh_one_for_each_tensor():
    recipe = load(RULES + "  - {layers: 5, merge_method: mix, parameters: {weight: [1, 2, 9]}}\n")
    decider = Decider(recipe, METHODS)
    for name in [*NAMES, *reversed(NAMES)]:
        once = decider.decide(name, PLACES[name])
        fresh = found(recipe, name)
        assert once == fresh
        assert hash(once) == hash(fresh)
        assert once.parameters == fresh.parameters
        assert [r.origins for r in once.parameters] == [r.origins for r in fresh.parameters]
        assert decider.rule_of(name, PLACES[name]) == fresh.rule


def test_equal_decisions_share_one_key():
    text = "merge_method: mix\nmodels: [o/a, o/b]\nparameters: {weight: [1, 2]}\n"
    decider = Decider(load(text), METHODS)
    decisions = {decider.decide(name, PLACES[name]) for name in NAMES}
    assert len(decisions) == 12  # one a layer; tensors outside take that of layer 0


def test_a_needed_value_that_no_case_gives_is_an_error_with_its_tensor():
    text = (
        "merge_method: need\nmodels:\n  - {model: o/a, parameters: {weight: 1}}\n  - o/b\n"
        "parameters: {weight: [{filter: mlp, value: 2}]}\n"
    )
    recipe = load(text)
    assert found(recipe, "model.layers.0.mlp.up_proj.weight").arguments == {"weight": (1.0, 2.0)}
    with pytest.raises(RecipeError) as caught:
        found(recipe, "lm_head.weight")
    (problem,) = caught.value.problems
    assert problem.where == "parameters.weight"
    assert "'need' needs a value for o/b, and no case fits tensor lm_head.weight" in problem.message
    assert "no filter" in problem.hint


def test_deciding_is_fast():
    text = RULES + "".join(f"  - {{match: '*never{i}*', drop: true}}\n" for i in range(10))
    text = text.replace("lambda: 2", "lambda: [{filter: mlp, value: [0, 1]}, {value: 2}]")
    names = [f"model.layers.{i}.mlp.experts.{j}.w.weight" for i in range(100) for j in range(200)]
    stacks = stacks_of(names)
    places = {name: place_of(name, stacks) for name in names}
    decider = Decider(load(text), METHODS)
    start = time.process_time()
    for name in names:
        decider.decide(name, places[name])
    assert time.process_time() - start < 1.0


# recipe after the models, where, part of the message, part of the hint
NAME_PROBLEMS = [
    ("rules: [{match: '*.attention.*', take: o/a}]", "rules.0",
     "match '*.attention.*' fits none of 39 tensors", "names look like model.layers.0"),
    ("rules: [{match: 'lm_head', take: o/a}]", "rules.0", "fits none", "*lm_head*"),
    ("rules: [{match: 'LM_HEAD.*', take: o/a}]", "rules.0", "fits none", "upper and lower case"),
    ("rules: [{match: 're:lm_head', take: o/a}]", "rules.0", "fits none", "the whole name"),
    ("rules: [{match: 'lm_head*', layers: 3, take: o/a}]", "rules.0", "and layers 3 fits none",
     "in no such layer"),
    ("rules: [{layers: 40, take: o/a}]", "rules.0", "layers 40 fits none", "names look like"),
    ("rules: [{layers: 0-12, take: o/a}]", "rules.0", "no layer 12: the longest stack has 12",
     "0 to 11"),
    ("rules: [{layers: -13-, take: o/a}]", "rules.0", "there is no layer -13", "-12 to -1"),
    ("rules: [{match: '*', take: o/a}, {match: '*mlp*', drop: true}]", "rules.1",
     "decided by an earlier rule", "before rules.0"),
    ("parameters: {weight: [{filter: mpl, value: 1}, {value: 2}]}", "parameters.weight.0",
     "filter 'mpl' fits none of 39", "names look like"),
    ("parameters: {weight: {filter: '*mlp*', value: 1}}", "parameters.weight",
     "fits none", "a filter is a plain substring"),
    ("parameters: {weight: [{layers: 12, value: 1}]}", "parameters.weight.0", "fits none", ""),
    ("parameters: {weight: [{layers: 2-15, value: 1}]}", "parameters.weight.0", "no layer 15", ""),
    ("rules: [{match: '*mlp*', merge_method: mix, "
     "parameters: {weight: [{filter: attn, value: 1}]}}]",
     "rules.0.parameters.weight.0", "filter 'attn' fits none of 12 tensors", ""),
]  # fmt: skip


@pytest.mark.parametrize(("rest", "where", "message", "hint"), NAME_PROBLEMS)
def test_patterns_that_do_nothing_are_errors(rest, where, message, hint):
    recipe = load(f"merge_method: mix\nmodels: [o/a, o/b]\n{rest}\n")
    (problem,) = check_names(recipe, PLACES)
    assert (problem.where, problem.severity, problem.code) == (where, "error", "")
    assert problem.location.line == 4
    assert message in problem.message
    assert hint in problem.hint


def test_patterns_of_one_model_are_checked_too():
    item = "{model: o/a, parameters: {weight: [{match: '*x', value: 1}, {value: 1}]}}"
    problems = check_names(load(f"merge_method: mix\nmodels: [{item}]\n"), PLACES)
    assert [problem.where for problem in problems] == ["models.0.parameters.weight.0"]


@pytest.mark.parametrize(
    "rest",
    [
        "parameters: {weight: [{filter: attn, value: 1}, {filter: mlp, value: 2}, {value: 3}]}",
        "parameters: {weight: [{filter: '*', value: 1}]}",
        "parameters: {weight: [{filter: attn, value: [1, 2]}, {filter: norm, value: 0}]}",
        "rules: [{match: '*', drop: true}]",
        "rules: [{layers: 0-11, drop: true}, {match: '*', take: o/a}]",
        "parameters: {weight: [{filter: layers.1., value: 1}, {filter: layers.11, value: 2}]}",
    ],
)
def test_patterns_that_all_do_something_are_fine(rest):
    assert check_names(load(f"merge_method: mix\nmodels: [o/a, o/b]\n{rest}\n"), PLACES) == ()


def test_warnings_of_patterns():
    text = (
        "parameters: {weight: [{filter: layers.1, value: 1}, {value: 2}, {filter: mlp, value: 3}]}"
    )
    first, second = check_names(load(f"merge_method: mix\nmodels: [o/a]\n{text}\n"), PLACES)
    assert (first.code, first.severity, first.where) == (
        "substring-filter", "warning", "parameters.weight.0",
    )  # fmt: skip
    assert "also fits model.layers.10." in first.message
    assert "*layers.1.*" in first.hint
    assert (second.code, second.severity, second.where) == (
        "case-never-used", "warning", "parameters.weight.2",
    )  # fmt: skip
    assert second.location.line == 4


def test_every_combination_of_actions_is_decided_by_the_first_rule_that_fits():
    matches = ["*mlp*", "*self_attn*", "*proj*", "*"]
    actions = ["drop: true", "take: o/a", "merge_method: mix"]
    for order in itertools.permutations(matches, 3):
        rules = [f"{{match: '{m}', {a}}}" for m, a in zip(order, actions, strict=True)]
        recipe = load(f"merge_method: mix\nmodels: [o/a]\nrules: [{', '.join(rules)}]\n")
        for name in NAMES:
            wanted = next((i for i, m in enumerate(order) if m.strip("*") in name), None)
            assert found(recipe, name).rule == wanted
