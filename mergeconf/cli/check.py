"""`mergeconf check`: is a recipe sound, and do its models fit together?"""

from __future__ import annotations

from mergeconf.cli.output import RecipeArgument, print_problems
from mergeconf.units import format_count

NAME = "check"


def command(recipe: RecipeArgument) -> None:
    """Check a recipe and its models' headers; report every problem at once.

    Reads no weights. Exit code 0 if the recipe can be run, 2 if not.
    """
    from mergeconf.plan import make_plan
    from mergeconf.recipe import load_recipe

    plan = make_plan(load_recipe(recipe))
    print_problems(plan.warnings)
    what = plan.recipe.method or f"take {plan.recipe.take}"
    print(
        f"{recipe}: sound: {what}, {len(plan.models)} models, "
        f"{len(plan.tensors):,} tensors, {format_count(plan.parameters)} parameters"
    )
