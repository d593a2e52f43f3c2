"""From a plan and the digests of a run to a lock."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mergeconf.checkpoint import Checkpoint
from mergeconf.graph.describe import describe
from mergeconf.graph.nodes import Random
from mergeconf.graph.walk import walk
from mergeconf.lock.data import Lock, LockedInput, LockedTensor
from mergeconf.lock.digest import digest_bytes, digest_data
from mergeconf.lock.resolved import resolved
from mergeconf.plan import Plan, TensorPlan
from mergeconf.recipe import Recipe
from mergeconf.storage.safetensors_in import StoredTensor
from mergeconf.version import VERSION

Digests = Mapping[StoredTensor, str]


class Makers:
    """Digests of what decides each output tensor's bytes."""

    def __init__(self, plan: Plan, version: str = VERSION) -> None:
        self._seed = plan.recipe.seed
        self._version = version
        self._expressions: dict[int, tuple[str, bool]] = {}

    def made_by(self, tensor: TensorPlan, inputs: Digests) -> str:
        """Return the digest of expression, content of the inputs, seed and version.

        The names of models and files have no part in it; the tensor's own has where it draws.
        """
        text, draws = self._expression(tensor)
        return digest_data(
            {
                "version": self._version,
                "expression": text,
                "dtype": tensor.dtype.name,
                "shape": tensor.shape,
                "inputs": [inputs[stored] for stored in tensor.inputs],
                "draws": [[self._seed, tensor.name], *tensor.origins] if draws else [],
            }
        )

    def _expression(self, tensor: TensorPlan) -> tuple[str, bool]:
        key = id(tensor.expression)
        if key not in self._expressions:
            text = "\n".join(describe(tensor.expression))
            draws = any(isinstance(node, Random) for node in walk(tensor.expression))
            self._expressions[key] = digest_bytes(text.encode()), draws
        return self._expressions[key]


def make_lock(
    plan: Plan,
    inputs: Digests,
    outputs: Mapping[str, str],
    target: Path,
) -> Lock:
    """Return the lock of a run.

    Args:
        plan: What was run.
        inputs: Digests of the stored tensors that were used.
        outputs: Digests of the output's tensors, by name.
        target: The output folder.
    """
    makers = Makers(plan)
    folder = plan.recipe.folder
    return Lock(
        versions=versions(),
        recipe_text=plan.recipe.text,
        recipe_files=recipe_files(plan.recipe),
        recipe_folder=relative(folder, target),
        resolved=resolved(plan.recipe),
        inputs=tuple(_input(item, folder, inputs) for item in plan.checkpoints),
        tensors={
            tensor.name: LockedTensor(
                tensor.dtype.name,
                tensor.shape,
                outputs[tensor.name],
                makers.made_by(tensor, inputs),
            )
            for tensor in plan.tensors
        },
        files={name: digest_bytes(_content(item)) for name, item in plan.sidecars.items()},
    )


def versions() -> dict[str, str]:
    """Return the versions of what a result may depend on."""
    found = {"mergeconf": VERSION, "python": platform.python_version()}
    for package in ("numpy", "torch", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def recipe_files(recipe: Recipe) -> dict[str, str]:
    """Return the texts of the recipes in other files, by their path from the recipe's folder."""
    found: dict[str, str] = {}
    _collect(recipe, recipe, found)
    return found


def _collect(recipe: Recipe, top: Recipe, found: dict[str, str]) -> None:
    for model in recipe.referenced():
        inner = model.merge
        if inner is None:
            continue
        if inner.path is not None and inner.path != top.path:
            found[relative(inner.path, top.folder)] = inner.text
        _collect(inner, top, found)


def relative(path: Path, start: Path) -> str:
    """Return a path from a folder, with `/`."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


def _input(checkpoint: Checkpoint, folder: Path, digests: Digests) -> LockedInput:
    return LockedInput(
        model=checkpoint.label,
        path=relative(checkpoint.folder, folder),
        files={file.path.name: file.size for file in checkpoint.files},
        tensors={
            name: digests[stored]
            for name, stored in checkpoint.tensors.items()
            if stored in digests
        },
    )


def _content(item: bytes | Path) -> bytes:
    return item if isinstance(item, bytes) else item.read_bytes()
