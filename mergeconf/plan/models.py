"""Look at every model that a recipe names: a folder, or a merge that is planned itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mergeconf.checkpoint import Checkpoint
from mergeconf.checkpoint.adapter import Adapter, open_adapter
from mergeconf.errors import CheckpointError, PlanError, Problem
from mergeconf.graph.nodes import Node, Random
from mergeconf.graph.walk import walk
from mergeconf.plan.adapted import adapt
from mergeconf.plan.data import Plan, TensorPlan
from mergeconf.plan.dequantized import model_of
from mergeconf.plan.output_files import RECIPE_NAME
from mergeconf.plan.sources import Derived, Model, Origin
from mergeconf.recipe import ModelRef, Recipe

OpenModel = Callable[[Path, str], Checkpoint]


class Library:
    """The models of a recipe and of all merges inside it, each looked at once."""

    def __init__(
        self, open_model: OpenModel, plan_merge: Callable[[Recipe, Library], Plan]
    ) -> None:
        self._open_model = open_model
        self._plan_merge = plan_merge
        self._stored: dict[Path, Model] = {}
        self._merges: dict[int, Model] = {}
        self._adapters: dict[Path, Adapter] = {}
        self._adapted: dict[tuple[Path, str], Model] = {}

    def models_of(self, recipe: Recipe) -> dict[str, Model]:
        """Return a recipe's models by key, the base first.

        Raises:
            CheckpointError: models are missing, damaged or not understood.
            PlanError: a merge inside the recipe cannot be planned. Whatever can be looked at is
                looked at first, so that all problems are told at once.
        """
        models: dict[str, Model] = {}
        unreadable: list[Problem] = []
        unplanned: list[Problem] = []
        for reference in recipe.referenced():
            try:
                models[reference.key] = self._model(reference, recipe.folder)
            except CheckpointError as error:
                unreadable.extend(error.problems)
            except PlanError as error:
                unplanned.extend(error.problems)
        if unreadable:
            raise CheckpointError(dict.fromkeys([*unreadable, *unplanned]))
        if unplanned:
            raise PlanError(dict.fromkeys(unplanned))
        return models

    def _model(self, reference: ModelRef, folder: Path) -> Model:
        if reference.merge is not None:
            return self._merge(reference, reference.merge)
        if reference.adapted is not None:
            return self._with_adapter(reference, *reference.adapted, folder)
        return self._stored_model(reference, folder)

    def _stored_model(self, reference: ModelRef, folder: Path) -> Model:
        _refuse_hub(reference, folder)
        path = reference.local_path(folder)
        if path not in self._stored:
            try:
                self._stored[path] = model_of(self._open_model(path, reference.text))
            except CheckpointError as error:
                raise CheckpointError(
                    [_located(problem, reference) for problem in error.problems]
                ) from None
        return self._stored[path]

    def _adapter(self, reference: ModelRef, folder: Path) -> Adapter:
        _refuse_hub(reference, folder)
        path = reference.local_path(folder)
        if path not in self._adapters:
            try:
                self._adapters[path] = open_adapter(path, reference.text)
            except CheckpointError as error:
                raise CheckpointError(
                    [_located(problem, reference) for problem in error.problems]
                ) from None
        return self._adapters[path]

    def _with_adapter(
        self, reference: ModelRef, base: ModelRef, adapter: ModelRef, folder: Path
    ) -> Model:
        key = (folder, reference.key)
        if key in self._adapted:
            return self._adapted[key]
        problems: list[Problem] = []
        model = opened = None
        try:
            model = self._model(base, folder)
        except CheckpointError as error:
            problems.extend(error.problems)
        try:
            opened = self._adapter(adapter, folder)
        except CheckpointError as error:
            problems.extend(error.problems)
        if model is None or opened is None:
            raise CheckpointError(problems)
        try:
            self._adapted[key] = adapt(model, opened, reference.text)
        except PlanError as error:
            raise PlanError([_located(p, reference) for p in error.problems]) from None
        return self._adapted[key]

    def _merge(self, reference: ModelRef, recipe: Recipe) -> Model:
        if id(recipe) not in self._merges:
            plan = self._plan_merge(recipe, self)
            self._merges[id(recipe)] = _model_of(plan, reference.text)
        return self._merges[id(recipe)]


def _model_of(plan: Plan, label: str) -> Model:
    """Return the model that a plan would write."""
    draws: dict[int, bool] = {}
    return Model(
        label=label,
        tensors={tensor.name: _derived(tensor, plan.recipe, draws) for tensor in plan.tensors},
        config=None if plan.config is None else dict(plan.config),
        files={name: file for name, file in plan.sidecars.items() if name != RECIPE_NAME},
        checkpoints=plan.checkpoints,
        warnings=plan.warnings,
        made_by=f"merge by {plan.recipe.method or f'take {plan.recipe.take}'}",
    )


def _derived(tensor: TensorPlan, recipe: Recipe, draws: dict[int, bool]) -> Derived:
    origins: tuple[Origin, ...] = ()
    key = id(tensor.expression)
    if key not in draws:
        draws[key] = _draws(tensor.expression)
    if draws[key]:
        origins = ((recipe.seed, tensor.name, recipe.seed_scope), *tensor.origins)
    return Derived(
        tensor.name, tensor.dtype, tensor.shape, tensor.expression, tensor.inputs, tensor.labels,
        origins,
    )  # fmt: skip


def _draws(expression: Node) -> bool:
    return any(isinstance(node, Random) for node in walk(expression))


def _refuse_hub(reference: ModelRef, folder: Path) -> None:
    if _is_hub_only(reference, folder):
        raise CheckpointError(
            Problem(
                "is no local folder, and models are not fetched from the Hub yet",
                where=reference.text,
                location=reference.location,
                hint=f"hf download {reference.hub_id} --local-dir FOLDER, and name that folder",
            )
        )


def _is_hub_only(reference: ModelRef, folder: Path) -> bool:
    """Tell whether a name looks like `org/name` on the Hub, and like nothing that lies here."""
    if reference.hub_id is None or "/" not in reference.hub_id:
        return False
    organization = reference.hub_id.partition("/")[0]
    return not (folder / organization).exists() and not reference.local_path(folder).exists()


def _located(problem: Problem, reference: ModelRef) -> Problem:
    return Problem(
        problem.message, problem.where, reference.location, problem.hint, problem.severity
    )
