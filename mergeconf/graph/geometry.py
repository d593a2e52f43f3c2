"""How is a tensor cut into blocks? By its shape alone, so that sums do not depend on tiles.

A row is the last dimension; a tensor of one dimension is one row. A block is as many whole rows
as fit into 65,536 elements; of a row that is longer, each 65,536 elements are a block, and the
last one is shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

BLOCK = 65_536
"""Most elements of a block."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Rows and blocks of a shape."""

    numel: int
    """Number of elements."""
    row: int
    """Elements of a row."""

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Geometry:
        """Return the geometry of a shape."""
        numel = prod(shape)
        return cls(numel, shape[-1] if len(shape) > 1 else numel)

    @property
    def unit(self) -> int:
        """Elements of a block, other than the last of a row or tensor."""
        return BLOCK if self.row > BLOCK or self.row == 0 else BLOCK // self.row * self.row

    @property
    def blocks(self) -> int:
        """Number of blocks; an empty tensor has one."""
        if self.row > BLOCK:
            return self.numel // self.row * -(-self.row // BLOCK)
        return max(1, -(-self.numel // self.unit))

    def split(self, start: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks of a stretch that holds whole blocks: index, first and last element.

        Elements are counted from the start of the stretch, the last one excluded.
        """
        if self.row <= BLOCK:
            for begin in range(0, size, self.unit):
                yield (start + begin) // self.unit, begin, min(begin + self.unit, size)
            return
        per_row = -(-self.row // BLOCK)
        begin = 0
        while begin < size:
            row, column = divmod(start + begin, self.row)
            end = begin + min(BLOCK, self.row - column)
            yield row * per_row + column // BLOCK, begin, end
            begin = end

    def stretches(self, most: int, *, whole_rows: bool) -> Iterator[tuple[int, int]]:
        """Cut the tensor into stretches of whole blocks: first element and number of elements.

        Args:
            most: Elements of a stretch at most, but never less than a block (or a row).
            whole_rows: Whether a row must not be cut.
        """
        if self.row <= BLOCK:
            step = max(1, most // self.unit) * self.unit
            for start in range(0, self.numel, step):
                yield start, min(step, self.numel - start)
            return
        step = self.row if whole_rows else max(1, most // BLOCK) * BLOCK
        for begin in range(0, self.numel, self.row):
            for start in range(0, self.row, step):
                yield begin + start, min(step, self.row - start)
