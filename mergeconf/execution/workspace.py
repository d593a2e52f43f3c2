"""The memory of one worker thread, and the tapes bound to it.

All buffers of a thread are parts of one block that is allocated once, so that a run's memory is
what the plan says. Binding a tape turns its instructions into calls on views of that block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from mergeconf.execution.kernels import Array
from mergeconf.execution.tape import Instruction, Operand, Ref, ScalarRef, Tape

_LANES = 512
_ALIGNMENT = 64
_MOST_BOUND = 128

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Surroundings(Protocol):
    """What a tape's outside steps call, for the tile that is being computed."""

    def load(self, slot: int, view: Array) -> None:
        """Fill a register with a tile of an input."""

    def draw(self, node: Any, view: Array) -> None:
        """Fill a register with random integers."""

    def expand(self, node: Any, view: Array) -> None:
        """Fill a register from inputs that are kept whole."""

    def rows(self, node: Any, view: Array) -> None:
        """Fill a register row by row."""

    def recall(self, node: Any, view: Array) -> None:
        """Fill a register with what an earlier sweep has kept."""

    def keep(self, node: Any, view: Array) -> None:
        """Keep a tile for later sweeps."""

    def reduce(self, index: int, view: Array) -> None:
        """Take a tile of what a reduction reduces, with room up to 512 elements."""

    def count(self, name: str, view: Array) -> None:
        """Take a tile of a mask to count."""

    def check(self, limit: int, view: Array) -> None:
        """Look at float32 bits before they are rounded."""

    def refuse(self, what: None, view: Array) -> None:
        """Fail if any element of a mask is true: inputs that have to be equal are not."""

    def store(self, view: Array) -> None:
        """Take a tile of the output."""


class BoundTape:
    """A tape's calls on the buffers of one thread, for tiles of one size."""

    def __init__(self, calls: list[Call], scalars: list[Array]) -> None:
        self.calls = calls
        self._scalars = scalars

    def set_scalars(self, values: list[float]) -> None:
        """Set the numbers that earlier passes have found."""
        for place, value in zip(self._scalars, values, strict=True):
            place[...] = value

    def run(self) -> None:
        """Compute one tile."""
        for function, args in self.calls:
            function(*args)


class Workspace:
    """Buffers of one thread."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._memory: Array = np.empty(0, np.uint8)
        self._bound: OrderedDict[tuple[int, int], tuple[Tape, BoundTape]] = OrderedDict()

    def bind(self, tape: Tape, size: int) -> BoundTape:
        """Return the tape's calls for tiles of `size` elements."""
        key = (id(tape), size)
        known = self._bound.get(key)
        if known is not None:
            self._bound.move_to_end(key)
            return known[1]
        capacity = -(-size // _LANES) * _LANES
        self._reserve(tape, capacity)
        bound = self._bind(tape, size, capacity)
        self._bound[key] = (tape, bound)  # holding the tape keeps its id from being used again
        if len(self._bound) > _MOST_BOUND:
            self._bound.popitem(last=False)
        return bound

    def _reserve(self, tape: Tape, capacity: int) -> None:
        needed = sum(size * capacity for size in tape.buffer_sizes) + _ALIGNMENT
        if needed > self._memory.nbytes:
            self._bound.clear()
            self._memory = np.empty(0, np.uint8)  # let the old block go before taking the new
            self._memory = np.empty(needed, np.uint8)

    def _bind(self, tape: Tape, size: int, capacity: int) -> BoundTape:
        start = -self._memory.ctypes.data % _ALIGNMENT
        buffers = []
        for item in tape.buffer_sizes:
            buffers.append(self._memory[start : start + item * capacity])
            start += item * capacity  # a multiple of 64: capacity is one of 512
        scalars = [np.zeros((), np.float32) for _ in tape.scalars]

        def view(operand: Operand, elements: int = size) -> Any:
            match operand:
                case Ref():
                    return buffers[tape.buffer_of[operand.register]].view(operand.dtype)[:elements]
                case ScalarRef():
                    return scalars[operand.index]
            return operand

        calls = [self._call(step, view, capacity) for step in tape.instructions]
        return BoundTape(calls, scalars)

    def _call(self, step: Instruction, view: Callable[..., Any], capacity: int) -> Call:
        outside: Mapping[str, Callable[..., None]] = {
            "load": self._surroundings.load,
            "draw": self._surroundings.draw,
            "expand": self._surroundings.expand,
            "rows": self._surroundings.rows,
            "recall": self._surroundings.recall,
            "keep": self._surroundings.keep,
            "count": self._surroundings.count,
            "check": self._surroundings.check,
            "refuse": self._surroundings.refuse,
        }
        if step.action == "compute":
            assert step.function is not None and step.out is not None
            operands = (*step.ins, *step.scratch, step.out)
            return step.function, tuple(view(operand) for operand in operands)
        if step.action == "reduce":
            return self._surroundings.reduce, (step.what, view(step.ins[0], capacity))
        if step.action == "store":
            return self._surroundings.store, (view(step.ins[0]),)
        operand = step.out if step.out is not None else step.ins[0]
        return outside[step.action], (step.what, view(operand))
