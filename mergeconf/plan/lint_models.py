"""Are models that are merged the same ones? Told from their files' identity, not their content.

Folders that are links to each other, and files of the Hub's cache, which are links named after
what they hold, are known to be the same without a byte being read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergeconf.checkpoint import StoredTensor
from mergeconf.errors import Problem
from mergeconf.plan.data import Plan, TensorPlan
from mergeconf.recipe import Decision, ModelRef

FileId = tuple[int, int]
"""Device and inode of a file."""
Ids = dict[Path, FileId | None]
"""What has been asked for before; None where a file is gone."""


def merged_from(tensor: TensorPlan) -> tuple[ModelRef, ...]:
    """Return the models that a method makes a tensor from, the base first; none if it is copied."""
    decision = tensor.decision
    if decision is None or decision.method is None or not tensor.dtype.is_float:
        return ()
    return _models_of(decision)


def identical_models(plan: Plan) -> Iterator[Problem]:
    """Warn of two models that give the same bytes of the same files to one tensor."""
    if _only_itself(plan):
        return
    plain = {str(ref): ref for ref in plan.recipe.referenced() if not (ref.merge or ref.adapted)}
    ids: Ids = {}
    pairs: dict[str, str] = {}
    for tensor in plan.tensors:
        if len(tensor.inputs) < 2 or len(merged_from(tensor)) < 2:
            continue
        first: dict[object, str] = {}
        for stored, label in zip(tensor.inputs, tensor.labels, strict=True):
            before = first.setdefault(_identity(stored, ids), label)
            if before != label and before in plain and label in plain:
                pairs.setdefault(label, before)
    base = str(plan.recipe.base_model)
    for label, before in pairs.items():
        yield Problem(
            f"'{label}' and {'the base' if before == base else repr(before)} are the same files",
            label,
            plain[label].location,
            "leave one of them out",
            "warning",
            "identical-models",
        )


def self_merge(plan: Plan) -> Iterator[Problem]:
    """Warn where all that is merged is one model."""
    if _only_itself(plan):
        yield Problem(
            f"'{plan.models[0].label}' is merged with itself alone",
            "models",
            plan.recipe.locations.get("models") or plan.recipe.locations.get("merge_method"),
            "name another model, or leave the merge out",
            "warning",
            "self-merge",
        )


def _only_itself(plan: Plan) -> bool:
    """Tell whether every tensor that is made from several is made from several times one."""
    merged = [tensor for tensor in plan.tensors if len(merged_from(tensor)) > 1]
    ids: Ids = {}
    return bool(merged) and all(_is_one(tensor, ids) for tensor in merged)


def _is_one(tensor: TensorPlan, ids: Ids) -> bool:
    if any(model.merge or model.adapted for model in merged_from(tensor)):
        return False
    return len({_identity(stored, ids) for stored in tensor.inputs}) == 1


def _identity(stored: StoredTensor, ids: Ids) -> object:
    if stored.file not in ids:
        try:
            status = stored.file.stat()
            ids[stored.file] = (status.st_dev, status.st_ino)
        except OSError:  # whoever reads it will say so
            ids[stored.file] = None
    return ids[stored.file] or stored.file, stored.offset


def _models_of(decision: Decision) -> tuple[ModelRef, ...]:
    return (*(() if decision.base is None else (decision.base,)), *decision.models)
