"""`mergeconf run`: merge."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergeconf.cli.output import (
    MemoryOption,
    RecipeArgument,
    ThreadsOption,
    cache_folder,
    memory_bytes,
    print_problems,
    print_table,
    refuse_folder,
)
from mergeconf.units import format_count, format_seconds, format_size

if TYPE_CHECKING:
    from mergeconf.api import RunReport
    from mergeconf.plan import Plan
    from mergeconf.recipe import Recipe

NAME = "run"


def command(
    recipe: RecipeArgument,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="OUT", help="Folder to write; default: merged/NAME."),
    ] = None,
    memory: MemoryOption = None,
    threads: ThreadsOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model that is already at OUT.")
    ] = False,
    update: Annotated[
        bool,
        typer.Option("--update", help="Replace what mergeconf made at OUT; what stays is reused."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Merge the models of a recipe, or do again what a mergeconf.lock says.

    The output appears at once and complete, or not at all. An interrupted run continues when the
    same command is given again, and gives the same bytes. Where the output is there already
    nothing is done.
    """
    from mergeconf.api import plan_lock, run_plan
    from mergeconf.cli.progress import progress
    from mergeconf.plan import make_plan
    from mergeconf.recipe import load_recipe

    budget = memory_bytes(memory)
    lock = None
    if recipe.endswith(".lock"):
        plan, lock = plan_lock(recipe)
        target = Path(out) if out is not None else Path(recipe).parent
    else:
        plan = make_plan(load_recipe(recipe))
        target = Path(out) if out is not None else _default_target(plan.recipe.name)
    if not quiet:
        print_problems(plan.warnings)
    signal.signal(signal.SIGTERM, _interrupt)
    with progress(quiet=quiet) as observer:
        report = run_plan(
            plan, target, memory=budget, threads=threads, force=force, update=update,
            observer=observer, lock=lock, cache=cache_folder(),
        )  # fmt: skip
    if quiet:
        return
    if report.unchanged:
        print(f"{target}: there already, made from this recipe and these inputs; nothing done")
    else:
        _print(plan, report, target)


def _default_target(name: str) -> Path:
    if name in (".", "..") or set(name) & set("/\0"):
        raise refuse_folder(name)
    return Path("merged") / name


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # a scheduler's polite request to end is answered as Ctrl-C is: what is finished is kept
    raise KeyboardInterrupt


def _print(plan: Plan, report: RunReport, target: Path) -> None:
    recipe = plan.recipe
    base = recipe.base_model
    models = _merged(recipe)
    rows = [
        ("merged", f"{len(models)} model{'' if len(models) == 1 else 's'} with "
         f"{recipe.method or f'take {recipe.take}'}, seed {recipe.seed}"),
    ]  # fmt: skip
    if base is not None:
        rows.append(("base", base.text))
    rows.append(("models", ", ".join(models)))
    for rule, count in zip(recipe.rules, plan.rule_counts, strict=True):
        rows.append((f"rules.{rule.index}", f"{rule.matcher}: {count:,} tensors"))
    rows.append(
        ("tensors", f"{len(plan.tensors):,} tensors, {format_count(plan.parameters)} parameters"
         + (f", {len(plan.left_out)} left out" if plan.left_out else ""))
    )  # fmt: skip
    rows.extend(_selection_rows(report))
    rows.extend(_rounding_rows(plan, report))
    if report.reused:
        rows.append(("reused", f"{report.reused:,} tensors that are made as before"))
    if report.resumed:
        rows.append(("continued", f"{report.resumed:,} tensors were there from an earlier run"))
    rows += [
        ("read", f"{format_size(report.bytes_read)}, written {format_size(report.bytes_written)}"),
        ("time", f"{format_seconds(report.seconds)}, peak memory {format_size(report.peak_bytes)} "
         "with the interpreter"),
        ("output", str(target)),
    ]  # fmt: skip
    print_table(rows, indent="")
    print("\nnext:")
    if plan.donor.config is not None:
        loader = _loader(plan.donor.config)
        code = f"from transformers import {loader}; {loader}.from_pretrained"
        code += f"({json.dumps(str(target))})"
        print(f"  python -c {shlex.quote(code)}")
    path = shlex.quote(str(recipe.path or "RECIPE"))
    print(f"  mergeconf explain {path} {shlex.quote(plan.tensors[0].name)}")


def _merged(recipe: Recipe) -> list[str]:
    """Return the models that are merged: without the base, where the method uses one."""
    from mergeconf.methods import all_methods

    method = None if recipe.method is None else all_methods()[recipe.method]
    names = [
        str(entry.model)
        for scope in recipe.scopes
        for entry in (scope.entries if method is None else scope.merged(method))
    ]
    return list(dict.fromkeys(names)) if recipe.assembled else names


def _loader(config: Mapping[str, Any]) -> str:
    """Return the class of transformers that loads a model with that config."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.isidentifier() or "auto_map" in config:
        return "AutoModel"
    return "AutoModelForCausalLM" if name.endswith(("ForCausalLM", "LMHeadModel")) else name


def _rounding_rows(plan: Plan, report: RunReport) -> list[tuple[str, str]]:
    """Say what rounding to the output's format has cost, for each group of modules."""
    formats = {tensor.dtype.name for tensor in plan.tensors if tensor.dtype.is_float}
    title = f"rounded to {formats.pop()}" if len(formats) == 1 else "rounded"
    rows: list[tuple[str, str]] = []
    for group, found in report.rounding.items():
        said = f"{group}: relative error {found.relative_error:.1e}"
        if found.lost_share is not None:
            said += f", {found.lost_share:.2%} of the updates lost"
        rows.append((title if not rows else "", said))
    return rows


def _selection_rows(report: RunReport) -> list[tuple[str, str]]:
    """Say what parameter selection has met, where it was used."""
    changed: list[float] = []
    while (share := report.share(f"changed:{len(changed)}")) is not None:
        changed.append(share)
    somewhere = report.share("changed_somewhere")
    if not changed or somewhere is None:
        return []
    equal = 1 - sum(changed) / len(changed)
    per_model = ", ".join(f"{1 - share:.2%}" for share in changed)
    return [
        ("equal to base", f"{equal:.2%} of the models' elements ({per_model}): drawn again"),
        ("base kept", f"{1 - somewhere:.2%} of the elements, which no model changed"),
    ]
