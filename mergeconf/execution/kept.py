"""What one sweep over a tensor leaves for the next ones, so that they need not compute it again.

Only what is dear to compute and small to keep: drawn masks, a bit an element, and numbers that
are one a row. Where there is no room for it, it is computed in every sweep; no bit of the result
depends on that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import numpy as np

from mergeconf.execution.kernels import Array
from mergeconf.graph.geometry import Geometry
from mergeconf.graph.nodes import AnyNode, Elementwise, RowDivergence

Keepable = Elementwise | RowDivergence
"""A node that may be kept."""

ROOM = 16 << 20
"""Bytes that a tensor may keep from sweep to sweep: the drawn masks of three models for tensors of
up to 44 million elements, and those of one for tensors of up to 134 million."""


def is_keepable(node: AnyNode) -> TypeGuard[Keepable]:
    """Tell whether a node is worth keeping where several sweeps need it."""
    if isinstance(node, Elementwise):
        return node.op == "draw_below"
    return isinstance(node, RowDivergence)


def kept_bytes(node: Keepable, geometry: Geometry) -> int:
    """Return what it takes to keep a node's value for a whole tensor, in bytes."""
    if isinstance(node, RowDivergence):
        return 4 * -(-geometry.numel // max(node.row, 1))
    return -(-geometry.numel // 8)


def choose_kept(
    nodes: Iterable[Keepable], geometry: Geometry, room: int
) -> tuple[tuple[Keepable, ...], int]:
    """Return those nodes, one after the other, for which there is room, and what they take."""
    chosen: list[Keepable] = []
    taken = 0
    for node in nodes:
        size = kept_bytes(node, geometry)
        if taken + size <= room:
            chosen.append(node)
            taken += size
    return tuple(chosen), taken


class Kept:
    """The values kept for one tensor."""

    def __init__(self, nodes: Sequence[Keepable], geometry: Geometry) -> None:
        self._arrays: dict[int, Array] = {
            id(node): np.zeros(kept_bytes(node, geometry), np.uint8) for node in nodes
        }
        self._lock = threading.Lock()

    def put(self, node: Keepable, start: int, view: Array) -> None:
        """Keep a tile, from element `start` on; each element is put once."""
        array = self._arrays[id(node)]
        if isinstance(node, RowDivergence):
            first = start // node.row
            array.view(np.float32)[first : first + len(view) // node.row] = view[:: node.row]
            return
        begin, skip = divmod(start, 8)
        if skip:
            view = np.concatenate([np.zeros(skip, bool), view])
        packed = np.packbits(view, bitorder="little")
        with self._lock:  # tiles may share a byte
            array[begin : begin + len(packed)] |= packed

    def get(self, node: Keepable, start: int, view: Array) -> None:
        """Fill a tile with what was kept, from element `start` on."""
        array = self._arrays[id(node)]
        if isinstance(node, RowDivergence):
            first, rows = start // node.row, len(view) // node.row
            values = array.view(np.float32)[first : first + rows]
            view.reshape(rows, node.row)[...] = values[:, None]
            return
        begin, skip = divmod(start, 8)
        end = skip + len(view)
        packed = array[begin : begin + -(-end // 8)]
        bits = np.unpackbits(packed, count=end, bitorder="little")
        np.copyto(view.view(np.uint8), bits[skip:])
