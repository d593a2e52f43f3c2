"""`mergeconf plan`: what would a run do, and what would it cost?"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergeconf.cli.output import (
    MemoryOption,
    RecipeArgument,
    ThreadsOption,
    memory_bytes,
    print_problems,
    print_table,
)
from mergeconf.units import format_count, format_size

if TYPE_CHECKING:
    from mergeconf.plan import Plan

NAME = "plan"
_SHOWN = 20
"""Tensors left out that are listed."""


def command(
    recipe: RecipeArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    memory: MemoryOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Print what a run would do and cost, without reading weights."""
    from mergeconf.execution.memory import fit_settings
    from mergeconf.execution.program import compile_expression
    from mergeconf.plan import make_plan
    from mergeconf.recipe import load_recipe

    plan = make_plan(load_recipe(recipe))
    settings, need = fit_settings(plan, memory_bytes(memory), threads)
    passes = Counter(compile_expression(tensor.expression).passes for tensor in plan.tensors)
    read = sum(
        compile_expression(tensor.expression).passes * stored.nbytes
        for tensor in plan.tensors
        for stored in tensor.inputs
    )
    figures = {
        "bytes_read": read,
        "bytes_written": plan.output_bytes,
        "passes": dict(sorted(passes.items())),
        "files": len(plan.layout.files),
        "peak_bytes": need.peak_bytes,
        "peak_tensor": need.largest,
        "threads": settings.threads,
        "disk_needed": plan.layout.total_bytes,
        "disk_free": shutil.disk_usage(_existing(Path.cwd())).free,
    }
    if as_json:
        print(json.dumps(_as_json(plan, figures), indent=2))
    else:
        print_problems(plan.warnings)
        _print(plan, figures)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _print(plan: Plan, figures: dict[str, Any]) -> None:
    recipe = plan.recipe
    print(f"{recipe.name}: {recipe.method or f'take {recipe.take}'}, seed {recipe.seed}")
    print("\nmodels")
    for index, model in enumerate(plan.models):
        role = "base" if index == 0 and recipe.base_model is not None else ""
        role = ", ".join(word for word in (role, model.made_by) if word)
        size = sum(tensor.nbytes for tensor in model.tensors.values())
        print_table([(model.label, f"{len(model.tensors):,} tensors", format_size(size), role)])
    if recipe.rules:
        print("\nrules")
        print_table(
            (f"rules.{rule.index}", str(rule.matcher), _action(rule), f"{count:,} tensors")
            for rule, count in zip(recipe.rules, plan.rule_counts, strict=True)
        )
    if left_out := plan.left_out:
        print("\nleft out")
        print_table((item.name, item.reason) for item in left_out[:_SHOWN])
        if len(left_out) > _SHOWN:
            print(f"  and {len(left_out) - _SHOWN:,} more")
    print("\noutput")
    formats = Counter(tensor.dtype.name for tensor in plan.tensors)
    print_table(
        [
            ("tensors", f"{len(plan.tensors):,}"),
            ("parameters", format_count(plan.parameters)),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in formats.items())),
            ("files", f"{figures['files']} of at most {format_size(recipe.shard_size)}"),
        ]
    )
    print("\ncost")
    passes = ", ".join(f"{count} for {n:,} tensors" for count, n in figures["passes"].items())
    print_table(
        [
            ("read", format_size(figures["bytes_read"])),
            ("written", format_size(figures["bytes_written"])),
            ("passes", passes),
            ("peak memory", f"{format_size(figures['peak_bytes'])} above the bare interpreter, "
             f"{figures['threads']} threads"),
            ("disk", f"{format_size(figures['disk_needed'])} needed, "
             f"{format_size(figures['disk_free'])} free here"),
        ]
    )  # fmt: skip


def _action(rule: Any) -> str:
    if rule.drop:
        return "drop"
    return f"take {rule.take}" if rule.take is not None else str(rule.method)


def _as_json(plan: Plan, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": str(plan.recipe.path) if plan.recipe.path else None,
        "name": plan.recipe.name,
        "method": plan.recipe.method,
        "seed": plan.recipe.seed,
        "models": [{"model": model.label, "tensors": len(model.tensors)} for model in plan.models],
        "rules": [
            {"match": str(rule.matcher), "action": _action(rule), "tensors": count}
            for rule, count in zip(plan.recipe.rules, plan.rule_counts, strict=True)
        ],
        "dropped": [
            {"name": item.name, "models": item.models, "reason": item.reason}
            for item in plan.dropped
        ],
        "warnings": [str(problem) for problem in plan.warnings],
        "cost": figures,
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "dtype": tensor.dtype.name,
                "file": plan.layout.files[plan.layout.tensors[tensor.name].file].name,
                "method": tensor.decision.method if tensor.decision else None,
                "rule": tensor.decision.rule if tensor.decision else None,
                "inputs": tensor.labels,
            }
            for tensor in plan.tensors
        ],
    }
