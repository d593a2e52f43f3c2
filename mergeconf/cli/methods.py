"""`mergeconf methods`: which merge methods are there, and what does each do?"""

from __future__ import annotations

from typing import Annotated

import typer

from mergeconf.cli.output import print_table

NAME = "methods"


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method to explain.")] = None,
) -> None:
    """List the merge methods, or explain one: formula, source, parameters."""
    from mergeconf.errors import Problem, RecipeError, did_you_mean
    from mergeconf.methods import all_methods

    methods = all_methods()
    if name is None:
        print_table((method.name, method.summary) for method in methods.values())
        print("\nmergeconf methods NAME explains one.")
        return
    method = methods.get(name)
    if method is None:
        raise RecipeError(
            Problem(f"there is no merge method '{name}'", hint=did_you_mean(name, methods))
        )
    print(f"{method.name}\n")
    print(method.description)
    bases = {"required": "needed", "optional": "may be given", "unused": "not used"}
    most = method.max_models
    print(f"\nbase_model: {bases[method.base]}")
    print(
        f"models{' beside the base' if method.base != 'unused' else ''}: "
        + (f"{method.min_models}" if most == method.min_models else
           f"{method.min_models} or more" if most is None else f"{method.min_models} to {most}")
    )  # fmt: skip
    if method.parameters:
        print("\nparameters:")
        print_table(_row(parameter) for parameter in method.parameters.values())


def _row(parameter: object) -> tuple[str, ...]:
    from mergeconf.methods import Parameter

    assert isinstance(parameter, Parameter)
    default = "required" if parameter.required else f"default {_shown(parameter.default)}"
    if parameter.kind == "bool":
        values = "true or false"
    elif parameter.kind == "choice":
        values = " or ".join(parameter.choices)
    else:
        whole = "whole number " if parameter.kind == "int" else ""
        values = " or ".join((f"{whole}{parameter.bounds}", *parameter.choices))
    return parameter.name, default, values, "per model" if parameter.per_model else ""


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
