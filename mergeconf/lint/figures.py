"""What does a look at the weights say of one model? Figures, and what identifies its sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeconf.checkpoint import StoredTensor
from mergeconf.errors import Location


@dataclass(frozen=True, slots=True)
class Distance:
    """One tensor of a model beside the same one of the reference, on the sample."""

    name: str
    relative: float
    """‖x − b‖ / ‖b‖; infinite where b is 0 and x is not."""
    cosine: float
    """Of the angle between x and b; 1 where both are 0."""
    scale: float
    """‖x‖ / ‖b‖."""
    telling: bool
    """Whether unrelated weights would show: a matrix of enough elements. The scales of norms are
    much alike in all models."""


@dataclass(slots=True)
class ModelFigures:
    """What the sample says of one model."""

    label: str
    location: Location | None
    distances: list[Distance] = field(default_factory=list)
    """Of the tensors that it shares with the reference."""
    elements: int = 0
    """Elements that were compared."""
    equal: int = 0
    """How many of them equal the reference's."""
    not_finite: dict[str, int] = field(default_factory=dict)
    """Elements that are NaN or infinite, by tensor."""
    same_as: str = ""
    """An earlier model, or the reference, whose sample is the same bit for bit."""
    same_everywhere: bool = False
    """Whether all elements were compared, not only the sample."""

    @property
    def telling(self) -> list[Distance]:
        """The distances that can tell relatives from strangers."""
        return [distance for distance in self.distances if distance.telling]

    @property
    def median(self) -> float:
        """Median relative distance, of matrices if there are any; NaN where nothing is shared."""
        relative = [item.relative for item in self.telling or self.distances]
        return statistics.median(relative) if relative else math.nan

    @property
    def cosine(self) -> float:
        """Median cosine, of matrices; NaN where there is none."""
        cosines = [item.cosine for item in self.telling]
        return statistics.median(cosines) if cosines else math.nan

    @property
    def worst(self) -> Distance | None:
        """The tensor that is furthest from the reference's, a matrix if there is any."""
        return max(self.telling or self.distances, key=lambda item: item.relative, default=None)


@dataclass(slots=True)
class Sampled:
    """A model while it is looked at."""

    figures: ModelFigures
    tensors: Mapping[str, StoredTensor]
    """Those that are compared, by name; of the reference, all."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of each tensor's sample."""
