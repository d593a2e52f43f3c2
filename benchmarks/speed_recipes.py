"""The recipes that `speed` measures: to measure another method, add a line to `RECIPES`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.model_job import model_names


@dataclass(frozen=True, slots=True)
class SpeedRecipe:
    """One method's recipe, for whichever models there are."""

    base: bool = True
    """Whether the recipe names a `base_model`."""
    lists_base: bool = False
    """Whether the base is listed among the models too."""
    models: int | None = None
    """How many fine-tunes it merges; None: all."""
    each: Mapping[str, object] = field(default_factory=dict)
    """Parameters of each fine-tune."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the whole recipe."""
    mergekit: bool = True
    """Whether mergekit 0.1.5 has the method."""
    method: str | None = None
    """The merge method; None: the name in `RECIPES`."""


WEIGHT = {"weight": 0.4}
SPARSE = {"weight": 0.4, "density": 0.5}

RECIPES: dict[str, SpeedRecipe] = {
    "passthrough": SpeedRecipe(base=False, models=1),
    "linear": SpeedRecipe(base=False, each=WEIGHT),
    "slerp": SpeedRecipe(lists_base=True, models=1, parameters={"t": 0.4}),
    "task_arithmetic": SpeedRecipe(each=WEIGHT),
    "parameter_selection": SpeedRecipe(parameters={"resample": "all"}, mergekit=False),
    "dare_linear": SpeedRecipe(each=SPARSE),
    "dare_ties": SpeedRecipe(each=SPARSE),
    "ties": SpeedRecipe(each=SPARSE),
    "breadcrumbs": SpeedRecipe(each=SPARSE),
    "breadcrumbs_ties": SpeedRecipe(each=SPARSE),
    "della": SpeedRecipe(each=SPARSE),
    "della_linear": SpeedRecipe(each=SPARSE),
    "sce": SpeedRecipe(parameters={"select_topk": 0.5}),
    "karcher": SpeedRecipe(base=False),
    "multislerp": SpeedRecipe(base=False, each=WEIGHT),
    "nuslerp": SpeedRecipe(base=False, models=2, each=WEIGHT),
    "model_stock": SpeedRecipe(),
    "model_stock-filter_wise": SpeedRecipe(method="model_stock", parameters={"filter_wise": True}),
    "nearswap": SpeedRecipe(models=1, parameters={"t": 0.001}),
    "arcee_fusion": SpeedRecipe(models=1),
    "ram": SpeedRecipe(),
    "ramplus_tl": SpeedRecipe(),
}
"""Recipes by merge method, in the order they run; a second recipe of a method has a longer name."""


def recipe_models(recipe: SpeedRecipe, fine_tunes: int) -> list[str]:
    """Return the names of the folders of the models that a recipe reads, each once."""
    base, *tuned = model_names(fine_tunes)
    return [*([base] if recipe.base else []), *tuned[: recipe.models]]


def recipe_text(method: str, models: Path, fine_tunes: int, dtype: str) -> str:
    """Return a method's recipe, for mergeconf and mergekit alike: JSON, which is YAML too.

    Models are named by their full paths in the folder `models`. `dtype` is the recipe's; the
    output is bfloat16.
    """
    recipe = RECIPES[method]
    base, *tuned = model_names(fine_tunes)
    listed: list[dict[str, object]] = [{"model": str(models / base)}] if recipe.lists_base else []
    for name in tuned[: recipe.models]:
        entry: dict[str, object] = {"model": str(models / name)}
        listed.append({**entry, "parameters": dict(recipe.each)} if recipe.each else entry)
    content: dict[str, object] = {"merge_method": recipe.method or method}
    if recipe.base:
        content["base_model"] = str(models / base)
    content |= {"models": listed, "dtype": dtype, "out_dtype": "bfloat16"}
    if recipe.parameters:
        content["parameters"] = dict(recipe.parameters)
    return json.dumps(content, indent=2) + "\n"
