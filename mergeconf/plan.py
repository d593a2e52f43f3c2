"""Which expression makes each output tensor, in which file, at what cost?"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from mergeconf.checkpoint import StoredTensor
from mergeconf.dtypes import DType
from mergeconf.graph.nodes import Node


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one output tensor is made."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    """Format that is written."""
    expression: Node
    """What is computed, over input slots."""
    inputs: tuple[StoredTensor, ...]
    """The stored tensor of each slot."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)
