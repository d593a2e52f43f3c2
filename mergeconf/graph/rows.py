"""Which rows of a stored tensor make up another one, row by row? A frozen list of row numbers."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import numpy.typing as npt

RowNumbers = npt.NDArray[np.int32]
ABSENT = -1
"""In place of a row number: there is no such row."""


class Rows:
    """Row numbers, compared by a digest of their content so that nodes can hold them."""

    def __init__(self, numbers: npt.NDArray[np.generic]) -> None:
        self.numbers: RowNumbers = np.array(numbers, np.int32)  # a copy that nobody else writes to
        self.numbers.setflags(write=False)
        self.digest = hashlib.sha256(self.numbers.tobytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and (self.digest, len(self)) == (other.digest, len(other))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        absent = int((self.numbers < 0).sum())
        lacking = f", {absent:,} absent" if absent else ""
        return f"<{len(self):,} rows{lacking}, {self.digest}>"

    @cached_property
    def runs(self) -> tuple[RowNumbers, RowNumbers]:
        """Where each run of consecutive rows starts, and the row that it starts with.

        A run of absent rows starts with `ABSENT`.
        """
        numbers = self.numbers.astype(np.int64)
        goes_on = np.where(numbers[1:] < 0, numbers[:-1] < 0, numbers[1:] == numbers[:-1] + 1)
        goes_on &= (numbers[1:] < 0) | (numbers[:-1] >= 0)
        starts = np.concatenate([[0], np.flatnonzero(~goes_on) + 1]).astype(np.int32)
        starts = starts[: len(numbers)]
        return starts, self.numbers[starts]

    def is_identity(self, count: int) -> bool:
        """Tell whether these are all of `count` rows, in their order."""
        return len(self) == count and bool((self.numbers == np.arange(count)).all())

    def of(self, outer: Rows) -> Rows:
        """Return the rows that `outer` takes of what these make up."""
        numbers = np.full(len(outer), ABSENT, np.int32)
        having = outer.numbers >= 0
        numbers[having] = self.numbers[outer.numbers[having]]
        return Rows(numbers)
