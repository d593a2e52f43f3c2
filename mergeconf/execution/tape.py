"""A tape: what is done, instruction by instruction, with one tile of one expression.

`lower` turns nodes into instructions over numbered registers, each equal sub-expression once;
`Tape` then lays registers into as few buffers as their lifetimes allow. A tape knows no tensor
names, files or threads: it is compiled once and used for every tensor of the same expression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mergeconf.graph.nodes import Expanded, Node, OfRows, Random, Reduction, Scalar

Action = Literal[
    "compute", "load", "draw", "expand", "rows", "recall", "keep", "reduce", "count", "check",
    "refuse", "store",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """A register, seen as an array of one numpy type."""

    register: int
    dtype: str

    def seen_as(self, dtype: str) -> Ref:
        """Return the same bits under another type of the same size."""
        return Ref(self.register, dtype)


@dataclass(frozen=True, slots=True)
class ScalarRef:
    """A number that an earlier pass has found, as float32."""

    index: int


Operand = Ref | ScalarRef | np.generic


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step: registers read, then one written, or handed to somebody outside the tape."""

    action: Action
    function: Callable[..., Any] | None
    """The kernel, called with operands, scratch and result in this order (`compute` only)."""
    ins: tuple[Operand, ...]
    scratch: tuple[Ref, ...]
    out: Ref | None
    what: Any = None
    """Slot to load, `Random` to draw, node to expand, to take rows for, to keep or to recall,
    reduction to feed, name to count under, limit to check."""


@dataclass(slots=True)
class Tape:
    """Instructions for one tile, and the buffers that they need."""

    instructions: list[Instruction] = field(default_factory=list)
    scalars: list[Scalar] = field(default_factory=list)
    """Numbers that must be known before the tape runs, in the order of `ScalarRef.index`."""
    reductions: list[Reduction] = field(default_factory=list)
    """What the tape feeds, if it is a pass of reductions."""
    keeps: tuple[Node, ...] = ()
    """What the tape hands over to be kept for later sweeps."""
    slots: tuple[int, ...] = ()
    """Input slots that are read."""
    register_sizes: list[int] = field(default_factory=list)
    """Bytes an element of each register."""
    buffer_of: list[int] = field(default_factory=list)
    """Buffer in which each register lies."""
    buffer_sizes: list[int] = field(default_factory=list)
    """Bytes an element of each buffer."""

    @property
    def bytes_per_element(self) -> int:
        """Memory that a tile needs, in bytes an element, draws included."""
        drawing = any(step.action == "draw" for step in self.instructions)
        return sum(self.buffer_sizes) + (2 if drawing else 0)

    def place_registers(self) -> None:
        """Lay registers into buffers: a buffer is free again after its register's last use."""
        last_use: dict[int, int] = {}
        for position, step in enumerate(self.instructions):
            for ref in _registers(step):
                last_use[ref.register] = position
        self.buffer_of = [-1] * len(self.register_sizes)
        self.buffer_sizes = []
        free: dict[int, list[int]] = {}
        for position, step in enumerate(self.instructions):
            dying = [
                ref.register
                for ref in dict.fromkeys(r for r in step.ins if isinstance(r, Ref))
                if last_use[ref.register] == position
            ]
            # Scratch must not share a buffer with an operand; the result may (all kernels are
            # element-wise and exact aliases are safe), so it is placed after operands are freed.
            for ref in step.scratch:
                self._place(ref.register, free)
            for register in dict.fromkeys(dying):
                free.setdefault(self.register_sizes[register], []).append(self.buffer_of[register])
            if step.out is not None and self.buffer_of[step.out.register] < 0:
                self._place(step.out.register, free)
            done = [ref.register for ref in step.scratch]
            if step.out is not None and last_use[step.out.register] == position:
                done.append(step.out.register)
            for register in done:
                free.setdefault(self.register_sizes[register], []).append(self.buffer_of[register])

    def _place(self, register: int, free: dict[int, list[int]]) -> None:
        size = self.register_sizes[register]
        available = free.get(size)
        if available:
            self.buffer_of[register] = available.pop()
        else:
            self.buffer_of[register] = len(self.buffer_sizes)
            self.buffer_sizes.append(size)


def _registers(step: Instruction) -> Sequence[Ref]:
    refs = [operand for operand in step.ins if isinstance(operand, Ref)]
    refs.extend(step.scratch)
    if step.out is not None:
        refs.append(step.out)
    return refs


class TapeBuilder:
    """Collects instructions; hands out registers."""

    def __init__(self) -> None:
        self.tape = Tape()
        self._scalar_index: dict[int, int] = {}

    def register(self, dtype: str) -> Ref:
        """Return a new register of a numpy type."""
        self.tape.register_sizes.append(np.dtype(dtype).itemsize)
        return Ref(len(self.tape.register_sizes) - 1, dtype)

    def emit(
        self,
        function: Callable[..., Any],
        *ins: Operand,
        out: str,
        scratch: Sequence[str] = (),
    ) -> Ref:
        """Add a kernel call and return its result, a new register of numpy type `out`."""
        temporaries = tuple(self.register(dtype) for dtype in scratch)
        result = self.register(out)
        self.tape.instructions.append(Instruction("compute", function, ins, temporaries, result))
        return result

    def load(self, slot: int, dtype: str) -> Ref:
        """Add the reading of an input's tile."""
        result = self.register(dtype)
        self.tape.instructions.append(Instruction("load", None, (), (), result, slot))
        return result

    def draw(self, node: Random) -> Ref:
        """Add the drawing of random integers for the tile."""
        result = self.register("<u2")
        self.tape.instructions.append(Instruction("draw", None, (), (), result, node))
        return result

    def expand(self, node: Expanded) -> Ref:
        """Add the computing of a tile from inputs that are kept whole."""
        result = self.register("<f4")
        self.tape.instructions.append(Instruction("expand", None, (), (), result, node))
        return result

    def rows(self, node: OfRows, dtype: str) -> Ref:
        """Add the filling of a tile row by row."""
        result = self.register(dtype)
        self.tape.instructions.append(Instruction("rows", None, (), (), result, node))
        return result

    def recall(self, node: Node) -> Ref:
        """Add the filling of a tile with what an earlier sweep has kept."""
        result = self.register("|b1" if node.kind == "mask" else "<f4")
        self.tape.instructions.append(Instruction("recall", None, (), (), result, node))
        return result

    def hand_over(self, action: Action, operand: Ref, what: Any = None) -> None:
        """Add a step that gives a register to the outside."""
        self.tape.instructions.append(Instruction(action, None, (operand,), (), None, what))

    def scalar(self, node: Scalar) -> ScalarRef:
        """Return the place of a number that an earlier pass finds."""
        for index, known in enumerate(self.tape.scalars):
            if known is node:
                return ScalarRef(index)
        self.tape.scalars.append(node)
        return ScalarRef(len(self.tape.scalars) - 1)

    def finish(self, reductions: Sequence[Reduction] = ()) -> Tape:
        """Place the registers and return the tape."""
        tape = self.tape
        tape.reductions = list(reductions)
        tape.slots = tuple(
            sorted({step.what for step in tape.instructions if step.action == "load"})
        )
        tape.keeps = tuple(step.what for step in tape.instructions if step.action == "keep")
        tape.place_registers()
        return tape
