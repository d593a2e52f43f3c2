"""How far two tensors are apart, and which differences the rule for ties allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Distance:
    """How far a result is from mergekit's: the largest over the elements compared."""

    ulps: int
    """Float32 numbers that one has to pass to come from one result to the other."""
    steps: float
    """Difference, in steps of float32 at the largest magnitude among inputs and result there.

    Where base and delta nearly cancel the result has many more digits than what it was computed
    from: `ulps` is large there, `steps` is not.
    """
    relative: float
    """Difference, over the largest magnitude in the tensor."""

    def __or__(self, other: Distance) -> Distance:
        return Distance(
            max(self.ulps, other.ulps),
            max(self.steps, other.steps),
            max(self.relative, other.relative),
        )


NONE = Distance(0, 0.0, 0.0)


def ordered(values: torch.Tensor) -> torch.Tensor:
    """Return integers that are one apart for neighboring float32 numbers; both zeros are 0."""
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits + 2**31), bits)


def distance(
    got: torch.Tensor,
    want: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    where: torch.Tensor | None = None,
) -> Distance:
    """Return the distance of two float32 tensors, at the positions of a mask if there is one."""
    assert got.dtype == want.dtype == torch.float32
    assert got.shape == want.shape
    assert got.isfinite().all() and want.isfinite().all()
    ulps = (ordered(got) - ordered(want)).abs()
    difference = (got.double() - want.double()).abs()
    scale = torch.stack([want, *(tensor.to(torch.float32) for tensor in inputs)]).abs().amax(0)
    step = torch.nextafter(scale, torch.full_like(scale, torch.inf)).double() - scale.double()
    steps, relative = difference / step, difference / max(float(want.abs().max()), 1e-30)
    if where is not None:
        ulps, steps, relative = ulps[where], steps[where], relative[where]
    if ulps.numel() == 0:
        return NONE
    return Distance(int(ulps.max()), float(steps.max()), float(relative.max()))
