"""Which models are the same? The samples say who may be; small models are compared as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from mergeconf.checkpoint import ReadFiles, StoredTensor
from mergeconf.lint.figures import Sampled
from mergeconf.lint.sample import read_elements, values_of

MOST_BYTES = 256 << 20
"""Models are compared element by element where both together have at most so many bytes."""
_PIECE = 1 << 18
"""Elements compared at a time."""


def settle_identity(models: Sequence[Sampled], names: Sequence[str], reads: ReadFiles) -> None:
    """Note for each model which earlier one is the same, the reference first.

    Args:
        models: The reference first, their samples read.
        names: All names that can be compared, not only those of the sample.
        reads: What reads the files.

    Raises:
        CheckpointError: a model's files cannot be read.
    """
    for index, model in enumerate(models):
        for earlier in models[:index]:
            if not _same_sample(model, earlier, whole=earlier is not models[0]):
                continue
            common = [name for name in names if name in model.tensors and name in earlier.tensors]
            pairs = [(model.tensors[name], earlier.tensors[name]) for name in common]
            if sum(one.nbytes + other.nbytes for one, other in pairs) <= MOST_BYTES:
                if not all(_same(one, other, reads) for one, other in pairs):
                    continue
                model.figures.same_everywhere = True
            model.figures.same_as = earlier.figures.label
            break


def _same_sample(model: Sampled, earlier: Sampled, *, whole: bool) -> bool:
    """Tell whether all samples of a model are those of another, which may have more if not `whole`:
    the reference has all that any model has."""
    digests = model.digests
    if whole and digests.keys() != earlier.digests.keys():
        return False
    return bool(digests) and all(earlier.digests.get(n) == d for n, d in digests.items())


def _same(one: StoredTensor, other: StoredTensor, reads: ReadFiles) -> bool:
    """Tell whether two tensors hold the same values, bit for bit once they are float32."""
    for first, end in pairwise(_starts(one.numel)):
        values = []
        for tensor in (one, other):
            stored = np.empty(end - first, tensor.dtype.numpy)
            read_elements(reads, tensor, first, stored)
            values.append(values_of(stored, tensor.dtype).tobytes())
        if values[0] != values[1]:
            return False
    return True


def _starts(numel: int) -> Iterable[int]:
    return [*range(0, numel, _PIECE), numel]
