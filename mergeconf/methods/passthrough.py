"""Copy of one model."""

from __future__ import annotations

from typing import Any

from mergeconf.graph import ops
from mergeconf.methods.registry import merge_method


@merge_method(base="unused", models=(1, 1), copies=True, laws={"identity"})
def passthrough(model: Any, *, scale: float = 1.0) -> Any:
    """Copy of one model's tensors, bit for bit, or multiplied by `scale`.

    θ · scale. With the default of 1 stored values are copied and never computed with.
    """
    return model if scale == 1 else ops.to_float32(model) * scale
