"""What one sweep leaves for the next: the same bits, computed once, within the room there is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.execution import local
from mergeconf.execution.kept import ROOM, Kept, choose_kept, kept_bytes
from mergeconf.execution.local import Settings
from mergeconf.execution.program import compile_expression
from mergeconf.graph import ops
from mergeconf.graph.geometry import Geometry
from mergeconf.graph.lazy import Lazy, Meaning
from mergeconf.graph.nodes import Cast, Elementwise, Input, Node, Random, RowDivergence
from mergeconf.methods import all_methods
from support.harness import assert_same_bits, expression_of, stream_method

BF16, F32 = DType.bfloat16, DType.float32
SHAPE = (613, 331)
PARAMETERS: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": (0.5, 0.3), "normalize": False},
    "dare_ties": {"density": (0.5, 0.3)},
    "della": {"density": (0.5, 0.3)},
    "della_linear": {"density": (0.5, 0.3)},
    "arcee_fusion": {},
}


def mask(number: int) -> Elementwise:
    """Return a drawn mask."""
    return Elementwise("draw_below", (Random("s", number, 0), 100.0), "mask")


def tensors(count: int) -> list[torch.Tensor]:
    """Return a base and models with small deltas."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=generator)
    deltas = [0.01 * torch.randn(SHAPE, generator=generator) for _ in range(count)]
    return [tensor.bfloat16() for tensor in (base, *(base + delta for delta in deltas))]


def models_of(name: str) -> int:
    """Return a number of models that the method takes."""
    return min(2, all_methods()[name].max_models or 2)


def cut(data: st.DataObject, size: int) -> list[tuple[int, int]]:
    """Draw an arrangement of tiles."""
    ends = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=5))})
    tiles = list(pairwise(ends))
    return data.draw(st.permutations(tiles))


@given(data=st.data(), size=st.integers(1, 100), seed=st.integers(0, 100))
def test_masks_come_back_for_any_tiles(data: st.DataObject, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).random(size) < 0.5
    node, other = mask(0), mask(1)
    kept = Kept([node, other], Geometry(size, size))
    for begin, end in cut(data, size):
        kept.put(node, begin, values[begin:end])
        kept.put(other, begin, ~values[begin:end])
    for begin, end in cut(data, size):
        for which, want in ((node, values), (other, ~values)):
            got = np.empty(end - begin, bool)
            kept.get(which, begin, got)
            assert (got == want[begin:end]).all()


@given(data=st.data(), row=st.integers(1, 9), rows=st.integers(1, 9))
def test_numbers_of_rows_come_back_for_any_whole_rows(
    data: st.DataObject, row: int, rows: int
) -> None:
    numbers = np.arange(rows, dtype=np.float32)
    values = numbers.repeat(row)
    x = Input(0, F32)
    node = RowDivergence(x, x, row)
    kept = Kept([node], Geometry(row * rows, row))
    assert kept_bytes(node, Geometry(row * rows, row)) == 4 * rows
    for begin, end in cut(data, rows):
        kept.put(node, begin * row, values[begin * row : end * row])
    for begin, end in cut(data, rows):
        got = np.empty((end - begin) * row, np.float32)
        kept.get(node, begin * row, got)
        assert (got == values[begin * row : end * row]).all()


def test_no_more_is_kept_than_there_is_room_for() -> None:
    nodes = [mask(number) for number in range(3)]
    geometry = Geometry(1001, 1001)
    assert choose_kept(nodes, geometry, 3 * 126) == (tuple(nodes), 378)
    assert choose_kept(nodes, geometry, 3 * 126 - 1) == (tuple(nodes[:2]), 252)
    assert choose_kept(nodes, geometry, 125) == ((), 0)
    assert choose_kept(nodes, Geometry(0, 0), 0)[1] == 0


# --- in a run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 30_000, ROOM])
@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "arcee_fusion"])
def test_each_mask_is_drawn_once_where_there_is_room(
    name: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    fill = local.fill_draws

    def counting(key: int, start: int, out: np.ndarray[Any, Any]) -> None:
        drawn.append(len(out))
        fill(key, start, out)

    monkeypatch.setattr(local, "fill_draws", counting)
    base, *models = tensors(2)
    settings = Settings(threads=1, tile=1000, chunk=65_536, room=room)
    stream_method(all_methods()[name], base, models, PARAMETERS[name], settings=settings)
    masks = {0: 0, 30_000: 1, ROOM: 2}[room]  # 25,363 bytes each
    assert sum(drawn) == (4 - masks) * base.numel()


@pytest.mark.parametrize("name", PARAMETERS)
def test_room_changes_no_bit(name: str) -> None:
    base, *models = tensors(models_of(name))
    found = [
        stream_method(
            all_methods()[name], base, models, PARAMETERS[name],
            settings=Settings(threads=2, tile=1000, chunk=65_536, room=room),
        ).tensor
        for room in (0, 30_000, ROOM)
    ]  # fmt: skip
    for tensor in found[1:]:
        assert_same_bits(tensor, found[0])


# --- what is kept -----------------------------------------------------------------------------


def repeated(name: str, parameters: dict[str, Any]) -> int:
    """Return how many nodes of a method are worth keeping."""
    base, *models = tensors(models_of(name))
    root, _ = expression_of(all_methods()[name], base, models, parameters, BF16)
    return len(compile_expression(root).repeated)


def test_only_what_several_sweeps_need_is_kept() -> None:
    assert {name: repeated(name, values) for name, values in PARAMETERS.items()} == {
        "dare_linear": 2, "dare_ties": 2, "della": 2, "della_linear": 2, "arcee_fusion": 1,
    }  # fmt: skip
    for name in ("dare_linear", "dare_ties", "della", "della_linear"):
        assert repeated(name, PARAMETERS[name] | {"rescale": False}) == 0
    assert repeated("dare_ties", PARAMETERS["dare_ties"] | {"rescale_by": "inverse_density"}) == 0
    assert repeated("ties", {"density": (0.5, 0.3)}) == 0


def thinned(x: Lazy) -> Node:
    """Return a tensor that needs a mask, drawn by the ranks of x, in two sweeps."""
    drawn = ops.bernoulli_by_rank(abs(x), 0.5, 0.1, "s", 0)
    kept = ops.only(drawn, x)
    return Cast((kept * ops.total_of(kept)).node, F32, "stored")


def test_what_is_counted_on_the_way_is_computed_in_the_last_sweep_too() -> None:
    x = Lazy(Input(0, F32), (4, 8), Meaning.plain)
    assert len(compile_expression(thinned(x)).repeated) == 1
    observed = ops.observe(x, positive=ops.greater(x, 0.0))
    assert compile_expression(thinned(observed)).repeated == ()
