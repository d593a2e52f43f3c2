"""`mergeconf explain`: how is one tensor made, and who decided that?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mergeconf.cli.output import RecipeArgument, print_table

if TYPE_CHECKING:
    from mergeconf.plan import Plan, TensorPlan
    from mergeconf.recipe import Decision, Resolved

NAME = "explain"


def command(
    recipe: RecipeArgument,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Name of an output tensor.")],
) -> None:
    """Explain one output tensor: the rule and recipe line that decided each parameter, and the
    expression that is computed."""
    from mergeconf.errors import PlanError, Problem, did_you_mean
    from mergeconf.graph.describe import describe
    from mergeconf.plan import make_plan
    from mergeconf.recipe import load_recipe

    plan = make_plan(load_recipe(recipe))
    found = plan.tensor(tensor)
    if found is None:
        dropped = next((item for item in plan.dropped if item.name == tensor), None)
        if dropped is not None:
            print(f"{tensor}: left out of the output: {dropped.reason}")
            return
        names = [item.name for item in plan.tensors]
        raise PlanError(
            Problem(f"the output has no tensor '{tensor}'", hint=did_you_mean(tensor, names))
        )
    placed = plan.layout.tensors[tensor]
    print(f"{tensor}: {list(found.shape)} {found.dtype}")
    print(f"in {plan.layout.files[placed.file].name}, {placed.nbytes:,} bytes at {placed.offset:,}")
    print("\ninputs")
    print_table(
        (label, stored.name if stored.name != tensor else "", stored.dtype.name, stored.file.name)
        for label, stored in zip(found.labels, found.inputs, strict=True)
    )
    if found.decision is not None:
        _print_decision(plan, found, found.decision)
    print("\nexpression")
    for line in describe(found.expression, found.labels):
        print(f"  {line}")


def _print_decision(plan: Plan, tensor: TensorPlan, decision: Decision) -> None:
    place = f" ({decision.location})" if decision.location else ""
    rule = "no rule fits: the recipe itself"
    if decision.rule is not None:
        rule = f"rules.{decision.rule}: {plan.recipe.rules[decision.rule].matcher}"
    print(f"\ndecided by\n  {rule}{place}")
    if decision.scope:
        print(f"  models of {decision.scope}")
    if decision.take is not None:
        print(f"  take {decision.take}: copied, not merged")
    elif tensor.dtype.is_integer:
        print("  whole numbers: copied, after making sure that all models agree")
    else:
        print(f"  merge_method {decision.method}")
        if decision.parameters:
            print("\nparameters")
            print_table(row for item in decision.parameters for row in _rows(item, decision))


def _rows(resolved: Resolved, decision: Decision) -> list[tuple[str, ...]]:
    per_model = isinstance(resolved.value, tuple)
    values = resolved.value if per_model else (resolved.value,)
    rows: list[tuple[str, ...]] = []
    for index, (value, origin) in enumerate(zip(values, resolved.origins, strict=True)):
        model = f"[{decision.models[index]}]" if per_model else ""
        shown = f"{value:.6g}" if isinstance(value, float) else str(value).lower()
        place = f"{origin.where} ({origin.location})" if origin.location else "default"
        how = "" if origin.how in (shown, "default") else origin.how
        rows.append((f"{resolved.name}{model}", shown, place, how))
    return rows
