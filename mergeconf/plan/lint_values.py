"""Do weights, densities and formats do what their author thinks? Asked of a plan's decisions.

A value is judged by where the recipe says it: a gradient that is tiny in one layer and large in
another is meant so, and no warning is given unless all that comes from one place is too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mergeconf.dtypes import DType
from mergeconf.errors import Location, Problem, listed
from mergeconf.plan.data import Plan
from mergeconf.plan.effects import effects
from mergeconf.recipe import Decision
from mergeconf.recipe.values import Evaluated

PRECISION = {DType.bfloat16: 8, DType.float16: 11, DType.float32: 24, DType.float64: 53}
"""Bits of a number's precision, the leading one included."""
LARGEST_CHANGE = 2.0**-3
"""Change of a weight, beside the weight, that no usual fine-tune passes on the whole. The tiny
models under recipes/models, trained hard, change by 0.09; large ones by 0.001 to 0.05."""

_SHOWN = 3


def smallest_effect(dtype: DType) -> float:
    """Return the coefficient below which rounding hides most of a model's change.

    The least distance at which a number of p bits rounds to its neighbor is 2^-(p+1) of it. A
    change of an eighth of the weights reaches that with a coefficient of 2^-(p-2): 1/64 for
    bfloat16, 1/512 for float16.
    """
    return 2.0 ** -(PRECISION[dtype] + 1) / LARGEST_CHANGE


# --- weights ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """All that one place of a recipe gives to one model."""

    origin: Evaluated
    largest: float = 0.0
    """The largest coefficient."""
    tensors: int = 0
    enough: bool = False
    """Whether it is large enough somewhere."""
    formats: dict[DType, None] = field(default_factory=dict)


def swallowed_weights(plan: Plan) -> Iterator[Problem]:
    """Warn of weights so small that what a model contributes is below the output's rounding."""
    seen: dict[tuple[str, str], _Seen] = {}
    for tensor in plan.tensors:
        decision = tensor.decision
        coefficients = effects(decision) if decision and tensor.dtype in PRECISION else None
        if decision is None or coefficients is None:
            continue
        limit = smallest_effect(tensor.dtype)
        sizes = [abs(coefficient) for coefficient in coefficients]
        small = [size for size in sizes if 0 < size < limit]
        for index, (model, size) in enumerate(zip(decision.models, sizes, strict=True)):
            if size:
                origin = _origin(decision, index)
                found = seen.setdefault((model.key, origin.where), _Seen(origin))
                found.largest = max(found.largest, size)
                found.tensors += 1
                found.formats[tensor.dtype] = None
                # many small ones add up: an average of a hundred models is no mistake
                found.enough |= size >= limit or sum(small) >= limit
    labels = {model.key: str(model) for model in plan.recipe.referenced()}
    for (key, _), found in seen.items():
        if not found.enough:
            yield _swallowed(labels[key], found)


def _origin(decision: Decision, index: int) -> Evaluated:
    """Return what makes a model's coefficient small: its weight, or else what scales all."""
    by_name = {resolved.name: resolved for resolved in decision.parameters}
    weight = by_name["weight"].origins[index] if "weight" in by_name else by_name["t"].origins[0]
    if not weight.where and "lambda" in by_name:
        return by_name["lambda"].origins[0]
    return weight


def _swallowed(label: str, found: _Seen) -> Problem:
    coarsest = min(found.formats, key=PRECISION.__getitem__)
    limit = smallest_effect(coarsest)
    return Problem(
        f"'{label}' counts with {found.largest:.2g} at most, in {_tensors(found.tensors)}: below "
        f"{limit:.2g} rounding to {coarsest} hides most of what a fine-tune has changed",
        found.origin.where,
        found.origin.location,
        "write 'out_dtype: float32', or a larger weight",
        "warning",
        "weight-swallowed",
    )


# --- densities --------------------------------------------------------------------------------


def kept(method: str, density: float, numel: int) -> int:
    """Return a bound of how many of `numel` elements a method may keep at a density."""
    if density <= 0:
        return 0
    if density < 1 and method in ("breadcrumbs", "breadcrumbs_ties", "sce"):
        return int(density * numel)
    return numel


DENSITIES = ("density", "select_topk")
"""Parameters that say which share of the elements is kept."""


@dataclass(slots=True)
class _Emptied:
    """What densities leave of one model."""

    origin: Evaluated
    """Where the first that leaves nothing of a tensor stands."""
    density: float
    tensors: int = 0
    zero: int = 0
    """Tensors for which the density is 0."""
    names: list[str] = field(default_factory=list)
    """Tensors that are too small for their density."""


def empty_densities(plan: Plan) -> Iterator[Problem]:
    """Warn of densities that keep no element of some tensors, or of all."""
    tensors: dict[str, int] = {}
    found: dict[str, _Emptied] = {}
    for tensor in plan.tensors:
        if tensor.decision is None or not tensor.dtype.is_float or not tensor.numel:
            continue
        for label, density, origin in _densities(tensor.decision):
            tensors[label] = tensors.get(label, 0) + 1
            if not kept(str(tensor.decision.method), density, tensor.numel):
                emptied = found.setdefault(label, _Emptied(origin, density))
                emptied.zero += density <= 0
                emptied.names.extend([tensor.name] if density > 0 else [])
    for label, emptied in found.items():
        emptied.tensors = tensors[label]
        # a density of 0 in some of the layers, by a gradient or a case, is meant
        if emptied.names or emptied.zero == emptied.tensors:
            yield _emptied(label, emptied)


def _densities(decision: Decision) -> Iterator[tuple[str, float, Evaluated]]:
    """Yield each density of a decision, with the models that it is for and its place."""
    every = ", ".join(str(model) for model in decision.models)
    for resolved in decision.parameters:
        if resolved.name not in DENSITIES:
            continue
        if not isinstance(resolved.value, tuple):
            yield every, resolved.value, resolved.origins[0]
            continue
        for model, value, origin in zip(
            decision.models, resolved.value, resolved.origins, strict=True
        ):
            yield str(model), value, origin


def _emptied(label: str, found: _Emptied) -> Problem:
    if not found.names:
        message = f"a density of 0 keeps nothing of '{label}'"
        hint = "leave the model out, or keep a share of it"
    else:
        message = (
            f"keeps nothing of '{label}' in {len(found.names):,} of {_tensors(found.tensors)}, "
            f"which are too small: {listed(found.names, _SHOWN)}"
        )
        hint = "a rule can give small tensors another density"
    where, location = found.origin.where, found.origin.location
    return Problem(message, where, location, hint, "warning", "density-keeps-nothing")


# --- formats ----------------------------------------------------------------------------------

_WIDER = (DType.bfloat16, DType.float32, DType.float64)
"""Formats whose range passes that of float16."""


def lost_range(plan: Plan) -> Iterator[Problem]:
    """Warn where float16 is written and models are stored in a format of a wider range."""
    narrowed = [
        tensor
        for tensor in plan.tensors
        if tensor.dtype is DType.float16 and any(s.dtype in _WIDER for s in tensor.inputs)
    ]
    if not narrowed:
        return
    formats = dict.fromkeys(
        stored.dtype for tensor in narrowed for stored in tensor.inputs if stored.dtype in _WIDER
    )
    key, location = _asked_for(plan)
    yield Problem(
        f"{_tensors(len(narrowed))} stored as {' and '.join(map(str, formats))} are written as "
        "float16: a run fails at values beyond 65,504, and those below 6e-8 become 0",
        key,
        location,
        f"'out_dtype: {next(iter(formats))}' keeps the range",
        "warning",
        "dtype-loses-range",
    )


def _asked_for(plan: Plan) -> tuple[str, Location | None]:
    """Return the key that names the output's format, and its place."""
    recipe = plan.recipe
    key = "out_dtype" if recipe.out_dtype else "dtype" if recipe.dtype else ""
    return key, recipe.locations.get(key)


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count:,} tensors"
