"""A program: the passes over a tensor that an expression needs, and their tapes.

An expression may use numbers that take a sweep over the whole tensor to find, and these may use
others. Level by level the reductions are swept; the last sweep computes and stores the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mergeconf.execution.kept import Keepable, is_keepable
from mergeconf.execution.lower import lower_output, lower_reductions
from mergeconf.execution.tape import Tape
from mergeconf.graph.nodes import (
    AnyNode,
    ColumnDot,
    ColumnItem,
    ColumnMean,
    Compute,
    Expanded,
    Gather,
    Item,
    KthLargest,
    Node,
    Observe,
    Random,
    Reduce,
    Reduction,
    RowLocal,
    Scalar,
    children,
)
from mergeconf.graph.rewrite import interned
from mergeconf.graph.walk import walk

Ids = frozenset[int]
_NONE: Ids = frozenset()
_SWEPT = (Reduce, KthLargest, ColumnMean, ColumnDot)
"""What takes a sweep over the whole tensor: `Reduction`."""


@dataclass(slots=True)
class Program:
    """Everything that can be prepared for an expression before any tensor is bound to it."""

    root: Node
    """The output, its equal parts one object."""
    levels: list[tuple[Reduction, ...]]
    """Reductions by the order in which they can be known."""
    final: Tape
    """Computes and stores the output, from the inputs alone."""
    randoms: tuple[Random, ...]
    """The random draws, each of which gets a key from the tensor's name."""
    expanded: tuple[Expanded, ...] = ()
    """What is made from inputs that are kept whole."""
    gathered: tuple[Gather, ...] = ()
    """What is read row by row."""
    whole_rows: bool = False
    """Whether a tile has to hold whole rows."""
    repeated: tuple[Keepable, ...] = ()
    """What is worth keeping, as several sweeps need it."""
    _sweeps: dict[tuple[tuple[int, ...], Ids, Ids], Tape] = field(default_factory=dict)
    _finals: dict[Ids, Tape] = field(default_factory=dict)

    def sweep(
        self, reductions: tuple[Reduction, ...], keep: Ids = _NONE, recall: Ids = _NONE
    ) -> Tape:
        """Return the tape that feeds some of the reductions of one level.

        Args:
            reductions: Of the same level.
            keep: Identities of nodes to keep for later sweeps.
            recall: Identities of nodes that an earlier sweep has kept.
        """
        key = tuple(map(id, reductions)), keep, recall
        tape = self._sweeps.get(key)
        if tape is None:
            tape = self._sweeps[key] = lower_reductions(reductions, keep, recall)
        return tape

    def output(self, recall: Ids = _NONE) -> Tape:
        """Return the tape that stores the output, given what earlier sweeps have kept."""
        if not recall:
            return self.final
        tape = self._finals.get(recall)
        if tape is None:
            tape = self._finals[recall] = lower_output(self.root, recall)
        return tape

    @property
    def passes(self) -> int:
        """Sweeps over the inputs, if no order statistic has to be looked for twice."""
        return len(self.levels) + 1

    def bytes_per_element(self, kept: Sequence[Keepable] = ()) -> int:
        """Return the most memory that any of the tapes needs, in bytes an element of a tile."""
        tapes = [self.final, *map(self.sweep, self.levels)]
        if kept:
            known = frozenset(map(id, kept))
            tapes.append(self.output(known))
            for level in self.levels:
                tapes += [self.sweep(level, keep=known), self.sweep(level, recall=known)]
        return max(tape.bytes_per_element for tape in tapes)


@lru_cache(maxsize=4096)
def _compiled(key: _ByIdentity) -> Program:
    root = interned(key.node)
    order = walk(root)
    level_of: dict[int, int] = {}
    levels: list[list[Reduction]] = []
    for node in order:
        level = max((level_of[id(child)] for child in children(node)), default=0)
        if isinstance(node, _SWEPT):
            levels.extend([] for _ in range(level + 1 - len(levels)))
            levels[level].append(node)
            level += 1
        level_of[id(node)] = level
    return Program(
        root=root,
        levels=[tuple(level) for level in levels],
        final=lower_output(root),
        randoms=tuple(node for node in order if isinstance(node, Random)),
        expanded=tuple(node for node in order if isinstance(node, Expanded)),
        gathered=tuple(node for node in order if isinstance(node, Gather)),
        whole_rows=any(isinstance(node, RowLocal) for node in order),
        repeated=_repeated(root, levels),
    )


def _repeated(root: Node, levels: list[list[Reduction]]) -> tuple[Keepable, ...]:
    """Return what is worth keeping and computed in the sweeps of several levels."""
    times: Counter[int] = Counter()
    found: dict[int, Keepable] = {}
    sweeps: list[Sequence[AnyNode]] = [*levels, [root]]
    for ends in sweeps:
        for node in _swept(ends):
            if is_keepable(node):
                times[id(node)] += 1
                found[id(node)] = node
    return tuple(node for key, node in found.items() if times[key] > 1 and not _counts(node))


def _swept(ends: Sequence[AnyNode]) -> Iterator[AnyNode]:
    """Yield the nodes that are computed when a level's reductions, or the output, are."""
    seen: set[int] = set()
    stack: list[AnyNode] = []
    for end in ends:
        stack.extend(children(end) if isinstance(end, _SWEPT) else [end])
    while stack:
        node = stack.pop()
        if id(node) not in seen and not isinstance(node, (*_SWEPT, Item, Compute, ColumnItem)):
            seen.add(id(node))
            yield node
            stack.extend(children(node))


def _counts(node: AnyNode) -> bool:
    """Tell whether something is counted on the way to a node, so that it has to be computed."""
    return any(isinstance(part, Observe) for part in walk(node))


@dataclass(frozen=True, slots=True, eq=False)
class _ByIdentity:
    """Compares expressions by identity: cheap, and the planner makes equal ones only once."""

    node: Node

    def __hash__(self) -> int:
        return id(self.node)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.node is self.node


def compile_expression(root: Node) -> Program:
    """Return the program of an expression; the same expression gives the same program."""
    return _compiled(_ByIdentity(root))


Known = dict[int, tuple[float, ...]]
"""Numbers found so far, by the identity of the `Reduction` or `Compute` that gives them."""


def evaluate_scalar(node: Scalar, known: Known) -> float:
    """Return a scalar from the reductions known so far, in float64."""
    if not isinstance(node, Item):
        return known[id(node)][0]
    if id(node.of) not in known:
        known[id(node.of)] = _compute(node.of, known)
    return known[id(node.of)][node.index]


def _compute(node: Compute, known: Known) -> tuple[float, ...]:
    args = [arg if isinstance(arg, float) else evaluate_scalar(arg, known) for arg in node.args]
    return tuple(float(value) for value in node.function(*args, *node.options))
