"""How far is each model from the base, and what would rounding leave of the merge?

Models are compared with the base, or with the first model where there is none, tensor by tensor
under the same name. Only tensors that a method makes from several models are looked at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergeconf.checkpoint import Checkpoint, ReadFiles, StoredTensor
from mergeconf.lint.figures import Distance, ModelFigures, Sampled
from mergeconf.lint.identity import settle_identity
from mergeconf.lint.rounding import Rounding, measure_rounding
from mergeconf.lint.sample import MOST_TENSORS, READABLE, Array, read_sample, spread
from mergeconf.plan import Plan

LEAST_ELEMENTS = 256
"""A smaller sample tells no direction: of unrelated weights its cosine lies within 0.25 of 0 but
for one in ten thousand."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a look at the weights says of a plan's models."""

    reference: str
    """The model that the others are compared with."""
    has_base: bool
    """Whether it is the base of the merge."""
    figures: tuple[ModelFigures, ...]
    """Of the reference, and of every model that was compared with it."""
    tensors: int
    """Tensors of which a sample was read."""
    rounding: Rounding | None
    """What rounding takes from the merge, where weights alone tell it."""
    bytes_read: int


def compare_models(plan: Plan) -> Comparison | None:
    """Look at a sample of the models' weights; None where no tensor is made from several models.

    Reads at most 16,384 elements of each of 200 tensors of each model; more only to compare models
    whose samples are the same, where they are small.

    Raises:
        CheckpointError: a model's files cannot be read.
    """
    used = {
        (stored.file, stored.name)
        for tensor in plan.tensors
        if tensor.dtype.is_float and len(tensor.inputs) > 1
        for stored in tensor.inputs
    }
    merged = [
        {n: t for n, t in checkpoint.tensors.items() if (t.file, t.name) in used}
        for checkpoint in plan.checkpoints
    ]
    chosen = [index for index, tensors in enumerate(merged) if tensors]
    if len(chosen) < 2:
        return None
    reference = plan.checkpoints[chosen[0]]
    others = {index: _shared(reference, merged[index]) for index in chosen[1:]}
    names = [n for n in reference.tensors if any(n in shared for shared in others.values())]
    with ReadFiles() as reads:
        look = _Look(plan, reference, reads)
        for index, shared in others.items():
            look.add(plan.checkpoints[index], shared)
        look.run(spread(names))
        settle_identity(look.models, names, reads)
        return Comparison(
            reference=reference.label,
            has_base=_is_base(plan, reference),
            figures=tuple(model.figures for model in look.models),
            tensors=min(len(names), MOST_TENSORS),
            rounding=measure_rounding(plan, reads),
            bytes_read=reads.bytes_read,
        )


def _shared(reference: Checkpoint, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors that can be compared with the reference's of the same name."""
    found = {}
    for name, tensor in tensors.items():
        own = reference.tensors.get(name)
        if own is None or own.shape != tensor.shape or not tensor.numel:
            continue
        if own.dtype in READABLE and tensor.dtype in READABLE:
            found[name] = tensor
    return found


def _is_base(plan: Plan, reference: Checkpoint) -> bool:
    return plan.recipe.base_model is not None and reference in plan.models[0].checkpoints


class _Look:
    """Goes over the tensors, with one of all models at a time in memory."""

    def __init__(self, plan: Plan, reference: Checkpoint, reads: ReadFiles) -> None:
        self._places = {str(ref): ref.location for ref in plan.recipe.referenced()}
        self._reads = reads
        self.models: list[Sampled] = []
        self.add(reference, reference.tensors)

    def add(self, checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor]) -> None:
        """Take part in what is looked at."""
        label = checkpoint.label
        self.models.append(Sampled(ModelFigures(label, self._places.get(label)), tensors))

    def run(self, names: Sequence[str]) -> None:
        """Look at the tensors of some names."""
        reference, *others = self.models
        for name in names:
            base = self._sample(reference, name)
            for model in others:
                if name in model.tensors:
                    self._compare(model, name, base, self._sample(model, name))

    def _sample(self, model: Sampled, name: str) -> Array:
        values = read_sample(self._reads, model.tensors[name])
        model.digests[name] = hashlib.sha256(values.tobytes()).digest()
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            model.figures.not_finite[name] = bad
        return values

    def _compare(self, model: Sampled, name: str, base: Array, values: Array) -> None:
        figures = model.figures
        figures.elements += values.size
        figures.equal += int(np.count_nonzero(values == base))
        good = np.isfinite(values) & np.isfinite(base)
        if not good.any():
            return
        shape = model.tensors[name].shape
        matrix = sum(size > 1 for size in shape) > 1
        figures.distances.append(
            distance(
                name, values[good].astype(np.float64), base[good].astype(np.float64),
                telling=matrix and int(good.sum()) >= LEAST_ELEMENTS,
            )
        )  # fmt: skip


def distance(name: str, x: Array, b: Array, *, telling: bool) -> Distance:
    """Return how far two tensors are from each other, given as float64."""
    xx, bb, xb = float(x @ x), float(b @ b), float(x @ b)
    difference = x - b
    apart = math.sqrt(float(difference @ difference))
    length = math.sqrt(bb)
    relative = apart / length if length else (math.inf if apart else 0.0)
    cosine = xb / math.sqrt(xx * bb) if xx * bb > 0 else float(xx == bb)
    scale = math.sqrt(xx) / length if length else (math.inf if xx else 1.0)
    return Distance(name, relative, cosine, scale, telling)
