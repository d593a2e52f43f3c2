"""`mergeconf check`: is a recipe sound, and do its models fit together?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mergeconf.cli.output import RecipeArgument, print_problems, print_table
from mergeconf.units import format_count, format_size

if TYPE_CHECKING:
    from mergeconf.lint.compare import Comparison
    from mergeconf.lint.figures import ModelFigures

NAME = "check"


def _print_codes(value: bool) -> None:
    if value:
        from mergeconf.codes import WARNINGS

        print_table(WARNINGS.items(), indent="")
        raise typer.Exit


def command(
    recipe: RecipeArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Look at a sample of the weights too.")
    ] = False,
    codes: Annotated[  # noqa: ARG001 its callback does all
        bool,
        typer.Option(
            "--codes", callback=_print_codes, is_eager=True,
            help="List the warnings that can be silenced, and stop.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Check a recipe and its models' headers; report every problem at once.

    Reads no weights unless --deep is given, which compares the models in a sample of them. Exit
    code 0 if the recipe can be run, 2 if not.
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
    if deep:
        from mergeconf.lint import compare_models, findings

        comparison = compare_models(plan)
        if comparison is None:
            print("no tensor is made from several models: there is nothing to compare")
            return
        _print_comparison(comparison)
        known = {(problem.where, problem.code) for problem in plan.warnings}
        found = findings(comparison, plan)
        print_problems([p for p in found if (p.where, p.code) not in known])


def _print_comparison(found: Comparison) -> None:
    what = "base" if found.has_base else "first model"
    print(f"\ncompared with the {what}, {found.reference}")
    header = ("model", "median distance", "largest", "equal", "cosine", "")
    print_table([header, *(_row(figures) for figures in found.figures[1:])])
    print(
        f"  {found.tensors:,} tensors, {format_size(found.bytes_read)} read; distances are "
        "relative: fine-tunes lie below 0.3, unrelated weights at about 1.4"
    )
    if found.rounding is not None:
        print(
            f"  {found.rounding.lost:.2%} of the change to the {what} is lost when it is rounded "
            f"to {found.rounding.dtype}"
        )


def _row(figures: ModelFigures) -> tuple[str, ...]:
    worst = figures.worst
    if worst is None:
        return figures.label, "nothing in common to compare"
    note = f"same as {figures.same_as}" if figures.same_as else ""
    return (
        figures.label,
        f"{figures.median:.2g}",
        f"{worst.relative:.2g} {worst.name}",
        f"{figures.equal / figures.elements:.2%}",
        f"{figures.cosine:.3f}" if figures.telling else "",
        note,
    )
