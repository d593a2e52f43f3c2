"""How much of a merge is lost where its result is rounded to the output's format?

Measured in the pass that writes, on every sixteenth block: the size of the rounding, and, where
the base is read too, how many of the updates vanish because they round back to the base's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mergeconf.dtypes import DType
from mergeconf.execution import kernels
from mergeconf.execution.kernels import Array
from mergeconf.graph.geometry import BLOCK
from mergeconf.graph.nodes import Cast
from mergeconf.plan import TensorPlan

EVERY = 16
"""One of so many blocks is measured."""
_PIECE = 1 << 13
"""Elements that are looked at a time: what they take in memory is used again and again."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Sums over the elements that were measured."""

    elements: int = 0
    error: float = 0.0
    """Σ (rounded − exact)², exact being the float32 result."""
    size: float = 0.0
    """Σ exact²."""
    updates: int = 0
    """Elements whose exact result differs from the base."""
    lost: int = 0
    """Those of them that were rounded to the base's value."""
    update_size: float = 0.0
    """Σ (exact − base)² where the base is known."""
    update_error: float = 0.0
    """Σ (rounded − exact)² where the base is known."""

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(
            *(getattr(self, name) + getattr(other, name) for name in Rounding.__slots__)
        )

    @property
    def relative_error(self) -> float:
        """‖rounded − exact‖ / ‖exact‖."""
        return float(np.sqrt(self.error / self.size)) if self.size else 0.0

    @property
    def lost_share(self) -> float | None:
        """Share of the updates that are lost; None where the base is not known."""
        return self.lost / self.updates if self.updates else None

    @property
    def update_relative_error(self) -> float | None:
        """‖rounded − exact‖ / ‖exact − base‖; None where the base is not known."""
        return float(np.sqrt(self.update_error / self.update_size)) if self.update_size else None


def is_rounded(plan: TensorPlan) -> bool:
    """Tell whether a tensor is computed and then rounded to a narrower format."""
    root = plan.expression
    return (
        isinstance(root, Cast)
        and root.x.kind == "f32"
        and plan.dtype in (DType.bfloat16, DType.float16)
    )


def base_slot(plan: TensorPlan) -> int | None:
    """Return the slot of the stored base of the merge that writes a tensor, or None."""
    decision = plan.decision
    if decision is None or decision.base is None or not plan.inputs:
        return None
    same = plan.labels[0] == decision.base.text and plan.inputs[0].shape == plan.shape
    return 0 if same and plan.inputs[0].dtype.is_float else None


def measured_part(start: int, size: int) -> int:
    """Return how many elements of a tile, from its start, are measured."""
    return 0 if start // BLOCK % EVERY else min(size, BLOCK)


def measure(exact: Array, rounded: Array, dtype: DType, base: Array | None) -> Rounding:
    """Return what rounding does to a piece of a tensor.

    Args:
        exact: float32 results.
        rounded: Their stored bits.
        dtype: The format of `rounded`.
        base: The base's values as float32, or None.
    """
    found = Rounding()
    for begin in range(0, len(exact), _PIECE):
        part = slice(begin, begin + _PIECE)
        known = None if base is None else base[part]
        found += _measure_piece(exact[part], as_float32(rounded[part], dtype), known)
    return found


def _measure_piece(exact: Array, rounded: Array, base: Array | None) -> Rounding:
    wide = exact.astype(np.float64)
    error = rounded.astype(np.float64) - wide
    squares = _sum_of_squares(error)
    found = Rounding(len(exact), squares, _sum_of_squares(wide))
    if base is None:
        return found
    update = wide - base
    changed = update != 0
    lost = changed & (rounded == base)
    return found + Rounding(
        updates=int(np.count_nonzero(changed)),
        lost=int(np.count_nonzero(lost)),
        update_size=_sum_of_squares(update),
        update_error=squares,
    )


def _sum_of_squares(values: Array) -> float:
    # not by `np.dot`: BLAS starts threads of its own, which wait for each other by spinning
    return float(np.add.reduce(values * values))


def as_float32(stored: Array, dtype: DType) -> Array:
    """Return stored values of a floating-point format as float32."""
    match dtype:
        case DType.bfloat16:
            out = np.empty(len(stored), np.uint32)
            kernels.bfloat16_to_float32(stored, out)
            return out.view(np.float32)
        case DType.float16:
            return stored.view(np.float16).astype(np.float32)
        case _:
            return stored.astype(np.float32)


def by_module(tensors: Iterable[TensorPlan], found: Mapping[str, Rounding]) -> dict[str, Rounding]:
    """Return the sums by group of modules: `self_attn`, `mlp`, or the name outside the layers."""
    groups: dict[str, Rounding] = {}
    for tensor in tensors:
        if found.get(tensor.name, Rounding()).elements:
            group = group_of(tensor.name)
            groups[group] = groups.get(group, Rounding()) + found[tensor.name]
    return groups


def group_of(name: str) -> str:
    """Return the group of a tensor: what follows the layer's number, or the module's name."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if index and part.isdecimal():
            return parts[index + 1]
    return parts[-2] if len(parts) > 1 else name
