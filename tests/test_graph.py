"""Expressions: meanings are checked, equal parts are computed once, buffers never collide.

The oracle of the random expressions evaluates nodes one by one into arrays of their own.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.execution.lower import lower_output, lower_reductions
from mergeconf.execution.program import compile_expression
from mergeconf.execution.tape import Ref, Tape
from mergeconf.execution.workspace import Workspace
from mergeconf.graph import ops
from mergeconf.graph.lazy import Lazy, Meaning, MeaningError
from mergeconf.graph.nodes import (
    Cast,
    Choose,
    Elementwise,
    Input,
    Node,
    Observe,
    Pick,
    Random,
    Reduce,
    children,
)
from mergeconf.graph.walk import walk
from mergeconf.methods import Method, all_methods
from mergeconf.methods.apply import trace
from support.harness import assert_same_bits, bits_of, stream
from support.strategies import parameters_of

Array = npt.NDArray[Any]
SHAPE = (3, 5)
A, B, C = (Input(slot, DType.float32) for slot in range(3))


def weight(node: Node = A) -> Lazy:
    return Lazy(node, SHAPE, Meaning.weight)


def delta() -> Lazy:
    return weight(A) - weight(B)


# --- meanings --------------------------------------------------------------------------------

MEANINGLESS: dict[str, Callable[[], Any]] = {
    "weight + weight": lambda: weight() + weight(B),
    "delta − weight": lambda: delta() - weight(),
    "weight + magnitude": lambda: weight() + abs(delta()),
    "magnitude − delta": lambda: abs(delta()) - delta(),
    "weight + number": lambda: weight() + 1.0,
    "number + delta": lambda: 1.0 + delta(),
    "weight − number": lambda: weight() - 1.0,
    "sum of weights": lambda: ops.add_all([weight(), weight(B)]),
    "shapes": lambda: weight() - Lazy(B, (15,), Meaning.weight),
}


@pytest.mark.parametrize("formula", MEANINGLESS)
def test_formula_without_meaning_is_refused(formula: str) -> None:
    with pytest.raises(MeaningError):
        MEANINGLESS[formula]()


def test_meanings_of_sums_and_products() -> None:
    w, d, plain = weight(), delta(), abs(delta())
    assert d.meaning is (d + d).meaning is (d - d).meaning is (2 * d).meaning is Meaning.delta
    assert (-d).meaning is (d * plain).meaning is (plain * d).meaning is Meaning.delta
    assert (w + d).meaning is (d + w).meaning is (w - d).meaning is Meaning.weight
    assert (w * 0.5).meaning is (w / 2).meaning is (w / plain).meaning is Meaning.weight
    assert (plain + plain).meaning is (d / d).meaning is (d * d).meaning is Meaning.plain
    assert (plain + 1.0).meaning is ops.greater(w, w).meaning is Meaning.plain
    assert ops.combine([w, weight(B)], [0.5, 0.5]).meaning is Meaning.weight
    assert ops.combine([w, d], [0.5, 0.5]).meaning is Meaning.plain
    assert ops.only(ops.greater(plain, 0.0), d).meaning is Meaning.delta


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda base, *models: models[0] - base, "gives a delta"),
        (lambda base, *models: abs(models[0] - base), "gives a plain"),
        (lambda base, *models: base + models[0], "a weight is added to a weight"),
    ],
)
def test_method_that_writes_no_weight_is_refused(function: Callable[..., Any], words: str) -> None:
    method = Method("wrong", function, "required", 1, None, False, {}, "", {})
    with pytest.raises(MeaningError, match=words):
        trace(method, A, [B], SHAPE, {}, DType.float32)


# --- equal parts -----------------------------------------------------------------------------


def actions(tape: Tape) -> list[str]:
    return [step.action for step in tape.instructions]


def test_equal_parts_are_computed_once() -> None:
    """Two expressions built apart are equal, so one of them is computed."""
    assert (weight() - weight(B)).node == (weight() - weight(B)).node
    total = (delta() * 2.0) + (delta() * 2.0)
    tape = compile_expression(Cast(total.node, DType.float32, "stored")).final
    found = actions(tape)
    assert found.count("load") == 2
    assert found.count("compute") == 3  # a − b, times 2, plus itself
    assert found.count("store") == 1


def test_slots_and_draws_are_read_once() -> None:
    half = [ops.bernoulli(delta(), 0.5, "s", 0) for _ in range(2)]
    more = ops.bernoulli(delta(), 0.5, "s", 1)
    kept = ops.only(ops.both(ops.both(*half), more), delta()) + delta()
    tape = compile_expression(Cast((weight() + kept).node, DType.float32, "stored")).final
    assert actions(tape).count("draw") == 2
    assert tape.slots == (0, 1)
    assert actions(tape).count("load") == 2


def test_equal_reductions_are_one() -> None:
    x, y = weight(), weight(B)
    (c,) = ops.scalars(_add, ops.dot(x, y), ops.dot(weight(), weight(B)), size=1)
    program = compile_expression(Cast((x * c).node, DType.float32, "stored"))
    assert program.levels == [(Reduce("dot", (A, B)),)] or len(program.levels[0]) == 1
    assert program.passes == 2


def _add(x: float, y: float) -> tuple[float]:
    return (x + y,)


def test_levels_of_reductions() -> None:
    """A sum of what an order statistic has trimmed can only be found after it."""
    magnitude = abs(delta())
    kept = ops.only(ops.at_least(magnitude, ops.kth_largest(magnitude, 3)), delta())
    (scale,) = ops.scalars(_add, ops.total_of(abs(kept)), ops.total_of(magnitude), size=1)
    result = weight() + kept * scale
    program = compile_expression(Cast(result.node, DType.float32, "stored"))
    assert [len(level) for level in program.levels] == [2, 1]
    assert program.passes == 3


def test_signs_of_zero_are_different_numbers() -> None:
    """0.0 equals −0.0 in Python, but x · 0.0 does not have the bits of x · −0.0."""
    x = torch.ones(5)
    total = ops.combine([weight(), weight()], [-0.0, 0.0])
    got = stream(Cast(total.node, DType.float32, "stored"), [x], DType.float32).tensor
    assert_same_bits(got, x * -0.0 + x * 0.0)


@given(data=st.data())
def test_same_method_same_expression(data: st.DataObject) -> None:
    method = all_methods()[data.draw(st.sampled_from(list(all_methods())))]
    count = method.min_models + (method.max_models is None)
    nodes = [Input(slot, DType.bfloat16) for slot in range(count + 1)]
    base = None if method.base == "unused" else nodes[0]
    values = data.draw(parameters_of(method, count))
    try:
        one = trace(method, base, nodes[1:], SHAPE, values, DType.bfloat16)
    except ValueError:
        return
    two = trace(method, base, nodes[1:], SHAPE, dict(values), DType.bfloat16)
    assert one == two
    assert hash(one) == hash(two)


class _CountedNumber(float):
    """Counts how often it is hashed."""

    asked = 0

    def __hash__(self) -> int:
        _CountedNumber.asked += 1
        return super().__hash__()


def test_cost_of_compiling_does_not_explode_with_shared_parts() -> None:
    """Each of 12 nodes uses the one before twice: 12 steps of work, not 2^12."""
    node: Node = Elementwise("mul", (Cast(A, DType.float32, "f32"), _CountedNumber(0.5)), "f32")
    for _ in range(12):
        node = Elementwise("add", (node, node), "f32")
    _CountedNumber.asked = 0
    tape = compile_expression(Cast(node, DType.float32, "stored")).final
    assert actions(tape).count("compute") == 13
    assert _CountedNumber.asked <= 100


def test_walk_gives_children_first_and_each_once() -> None:
    x = delta() * 3.0
    order = walk((x + x).node)
    assert len({id(node) for node in order}) == len(order)
    place = {id(node): index for index, node in enumerate(order)}
    for node in order:
        assert all(place[id(child)] < place[id(node)] for child in children(node))


# --- buffers ---------------------------------------------------------------------------------

SIZE = 700
STORED = (DType.bfloat16, DType.float16, DType.float32, DType.float64)


class _Fake:
    """Gives inputs and draws, keeps what is stored and counted."""

    def __init__(self, inputs: list[Array]) -> None:
        self.inputs, self.stored, self.counts = inputs, [], {}

    def load(self, slot: int, view: Array) -> None:
        view[:] = self.inputs[slot].view(view.dtype)

    def draw(self, node: Random, view: Array) -> None:
        view[:] = draws(node)

    def expand(self, node: Any, view: Array) -> None:
        raise AssertionError

    def rows(self, node: Any, view: Array) -> None:
        raise AssertionError

    def recall(self, node: Any, view: Array) -> None:
        raise AssertionError

    def keep(self, node: Any, view: Array) -> None:
        raise AssertionError

    def reduce(self, index: int, view: Array) -> None:
        self.counts[index] = view[:SIZE].copy()

    def count(self, name: str, view: Array) -> None:
        self.counts[name] = int(view.sum())

    def check(self, limit: int, view: Array) -> None:
        pass

    def refuse(self, what: Any, view: Array) -> None:
        raise AssertionError

    def store(self, view: Array) -> None:
        self.stored.append(view.copy())


def draws(node: Random) -> Array:
    return np.random.default_rng([node.model, node.draw]).integers(0, 1 << 16, SIZE, np.uint16)


_BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "minimum": np.minimum,
    "maximum": np.maximum,
}  # fmt: skip
_COMPARE = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}
_TORCH = {
    DType.bfloat16: torch.bfloat16, DType.float16: torch.float16, DType.float32: torch.float32,
    DType.float64: torch.float64,
}  # fmt: skip


class _Direct:
    """Evaluates nodes with an array for every value; stored bits as torch tensors."""

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        self.inputs, self.known = inputs, {}

    def __call__(self, node: Any) -> Any:
        if isinstance(node, float):
            return np.float32(node)
        if id(node) not in self.known:
            self.known[id(node)] = self.value(node)
        return self.known[id(node)]

    def value(self, node: Node) -> Any:
        match node:
            case Input():
                return self.inputs[node.slot]
            case Random():
                return draws(node)
            case Cast():
                x = self(node.x)
                x = x if isinstance(x, torch.Tensor) else torch.from_numpy(x)
                x = x.to(torch.float32)
                return x.numpy() if node.kind == "f32" else x.to(_TORCH[node.dtype])
            case Choose():
                return torch.where(torch.from_numpy(self(node.mask)), self(node.x), self(node.y))
            case Observe():
                return self(node.x)
            case Pick():
                return self.pick(node)
            case Elementwise():
                return self.elementwise(node)
        raise AssertionError(node)

    def pick(self, node: Pick) -> torch.Tensor:
        masks = [
            np.ones(SIZE, bool) if node.eligible is None else self(m)
            for m in (node.eligible or node.candidates)
        ]
        owned = [mask.astype(np.int64) * share for mask, share in zip(masks, node.shares)]  # noqa: B905
        ticket = self(node.draw).astype(np.int64) * sum(owned) >> 16
        result = self(node.candidates[-1] if node.otherwise is None else node.otherwise)
        upper = np.zeros(SIZE, np.int64)
        for candidate, share in zip(node.candidates, owned, strict=True):
            mine = (upper <= ticket) & (ticket < upper + share)
            upper = upper + share
            result = torch.where(torch.from_numpy(mine), self(candidate), result)
        return result

    def elementwise(self, node: Elementwise) -> Array:
        args = [self(arg) for arg in node.args]
        match node.op:
            case "neg":
                return -args[0]
            case "abs":
                return np.abs(args[0])
            case "not":
                return ~args[0]
            case "and":
                return args[0] & args[1]
            case "or":
                return args[0] | args[1]
            case "only":
                return np.where(args[0], args[1], np.float32(0))
            case "where":
                return np.where(*args)
            case "to_float":
                return args[0].astype(np.float32)
            case "agrees":
                return np.where(args[1] < 0, args[0] < 0, args[0] > 0)
            case "differs":
                return (args[0] != args[1]).numpy()
            case "draw_below":
                return args[0] < args[1]
        return {**_BINARY, **_COMPARE}[node.op](*args)


@st.composite
def expressions(draw: st.DrawFn) -> Node:
    """Return a random expression whose parts are used several times."""
    slots = [Input(slot, dtype) for slot, dtype in enumerate((*STORED, DType.bfloat16))]
    numbers: list[Node] = [Cast(node, DType.float32, "f32") for node in slots]
    stored: dict[DType, list[Node]] = {dtype: [] for dtype in STORED}
    for node in slots:
        stored[node.dtype].append(node)
    masks: list[Node] = [Elementwise("gt", (numbers[0], numbers[1]), "mask")]
    number, mask = (
        st.deferred(lambda: st.sampled_from(numbers)),
        st.deferred(lambda: st.sampled_from(masks)),
    )
    constant = st.sampled_from([0.5, -2.0, 0.0, 3.0])
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.integers(0, 13))
        dtype = draw(st.sampled_from(STORED))
        bits = st.sampled_from(stored[dtype])
        random = Random("s", draw(st.integers(0, 1)), draw(st.integers(0, 1)))
        if kind <= 3:
            op: Any = draw(st.sampled_from(sorted(_BINARY)))
            args = (draw(number), draw(number | constant))
            numbers.append(Elementwise(op, args, "f32"))
        elif kind == 4:
            op = draw(st.sampled_from(["neg", "abs"]))
            numbers.append(Elementwise(op, (draw(number),), "f32"))
        elif kind == 5:
            numbers.append(Elementwise("only", (draw(mask), draw(number)), "f32"))
        elif kind == 6:
            numbers.append(Elementwise("where", (draw(mask), draw(number), draw(number)), "f32"))
        elif kind == 7:
            numbers.append(Elementwise("to_float", (draw(mask),), "f32"))
        elif kind == 8:
            op = draw(st.sampled_from([*sorted(_COMPARE), "agrees"]))
            masks.append(Elementwise(op, (draw(number), draw(number)), "mask"))
        elif kind == 9:
            op = draw(st.sampled_from(["and", "or", "not"]))
            count = 1 if op == "not" else 2
            masks.append(Elementwise(op, tuple(draw(mask) for _ in range(count)), "mask"))
        elif kind == 10:
            threshold = float(draw(st.sampled_from([0, 1, 30_000, 65_535, 65_536])))
            masks.append(Elementwise("draw_below", (random, threshold), "mask"))
        elif kind == 11:
            stored[dtype].append(Choose(draw(mask), draw(bits), draw(bits), dtype))
            masks.append(Elementwise("differs", (draw(bits), draw(bits)), "mask"))
        elif kind == 12:
            source = draw(number | st.sampled_from(stored[draw(st.sampled_from(STORED))]))
            stored[dtype].append(Cast(source, dtype, "stored"))
            numbers.append(Cast(stored[dtype][-1], DType.float32, "f32"))
        else:
            count = draw(st.integers(1, 4))
            shares = (*tuple(draw(st.integers(0, 5)) for _ in range(count - 1)), 1)
            eligible = draw(st.none() | st.tuples(*[mask] * count))
            otherwise = draw(bits) if eligible is not None else None
            candidates = tuple(draw(bits) for _ in range(count))
            stored[dtype].append(Pick(random, candidates, shares, eligible, otherwise, dtype))
    root = draw(st.sampled_from(stored[draw(st.sampled_from(STORED))]) | number)
    root = root if root.kind == "stored" else Cast(root, draw(st.sampled_from(STORED)), "stored")
    return Observe(root, (("seen", draw(mask)),), "stored")


def stored_inputs(seed: int) -> list[torch.Tensor]:
    """Return small whole numbers and halves: exact, with many ties, and finite throughout."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(-8, 9, (SIZE,), generator=generator) / 2).to(_TORCH[dtype])
        for dtype in (*STORED, DType.bfloat16)
    ]


def as_array(tensor: torch.Tensor) -> Array:
    return bits_of(tensor).numpy()


@given(expressions())
def test_any_expression(root: Observe) -> None:
    tape = lower_output(root)
    check_lifetimes(tape)
    inputs = stored_inputs(0)
    fake = _Fake([as_array(tensor) for tensor in inputs])
    workspace = Workspace(fake)
    bound = workspace.bind(tape, SIZE)
    with np.errstate(all="ignore"):
        bound.run()
        fake.inputs = [as_array(tensor) for tensor in stored_inputs(1)]
        bound.run()  # nothing is left over from the tile before
        for result, seed in zip(fake.stored, (0, 1), strict=True):
            direct = _Direct(stored_inputs(seed))
            want, seen = direct(root), int(direct(root.counts[0][1]).sum())
            got = torch.from_numpy(result.view(as_array(want).dtype)).view(want.dtype)
            finite = want.isfinite()  # overflow in a format gives NaN in what follows
            assert torch.equal(got[finite], want[finite])
    assert fake.counts["seen"] == seen


def check_lifetimes(tape: Tape) -> None:
    """Every register that is read was the last to be written into its buffer."""
    holds: dict[int, int] = {}
    for step in tape.instructions:
        read = [ref for ref in step.ins if isinstance(ref, Ref)]
        for ref in read:
            assert holds.get(tape.buffer_of[ref.register]) == ref.register, step
        used = {tape.buffer_of[ref.register] for ref in read}
        for ref in step.scratch:
            assert tape.buffer_of[ref.register] not in used, "scratch overwrites an operand"
            holds[tape.buffer_of[ref.register]] = ref.register
        if step.out is not None:
            buffer = tape.buffer_of[step.out.register]
            assert buffer not in {tape.buffer_of[ref.register] for ref in step.scratch}
            holds[buffer] = step.out.register
    for register, size in enumerate(tape.register_sizes):
        if tape.buffer_of[register] >= 0:
            assert tape.buffer_sizes[tape.buffer_of[register]] == size


@pytest.mark.parametrize("name", list(all_methods()))
@given(data=st.data())
def test_memory_of_a_tile_is_what_the_tape_says(name: str, data: st.DataObject) -> None:
    method = all_methods()[name]
    count = method.min_models + 2 * (method.max_models is None)
    nodes: list[Node] = [Input(slot, DType.bfloat16) for slot in range(count + 1)]
    base = None if method.base == "unused" else nodes[0]
    values = data.draw(parameters_of(method, count))
    try:
        root = trace(method, base, nodes[1:], (31, 40), values, DType.bfloat16)
    except ValueError:
        return
    program = compile_expression(root)
    known = frozenset(map(id, program.repeated))
    plain = [program.final, *map(program.sweep, program.levels)]
    tapes = [*plain, program.output(known)]
    for level in program.levels:
        tapes += [program.sweep(level, keep=known), program.sweep(level, recall=known)]
    for tape in tapes:
        check_lifetimes(tape)
        drawing = any(step.action == "draw" for step in tape.instructions)
        for size in (512, 1000, 65_536):
            workspace = Workspace(_Fake([]))
            workspace.bind(tape, size)
            rounded = math.ceil(size / 512) * 512
            allocated = workspace._memory.nbytes
            assert allocated <= (tape.bytes_per_element - 2 * drawing) * rounded + 64
    assert program.bytes_per_element() == max(tape.bytes_per_element for tape in plain)
    most = max(tape.bytes_per_element for tape in tapes)
    assert program.bytes_per_element(program.repeated) == most


def test_a_thread_holds_one_block_of_memory() -> None:
    """A larger tile lets the smaller one's block go, with all that was bound to it."""
    tape = lower_output(Cast((weight() * 2.0).node, DType.float32, "stored"))
    workspace = Workspace(_Fake([]))
    workspace.bind(tape, 512)
    block = weakref.ref(workspace._memory)
    workspace.bind(tape, 100_000)
    assert block() is None
    block = weakref.ref(workspace._memory)
    workspace.bind(tape, 512)  # fits into what is there
    assert block() is workspace._memory


def test_reduction_sees_room_up_to_512_elements() -> None:
    tape = lower_reductions([Reduce("sum", (Cast(A, DType.float32, "f32"),))])
    fake = _Fake([np.arange(SIZE, dtype=np.float32)])
    seen: list[int] = []
    fake.reduce = lambda index, view: seen.append(len(view))  # type: ignore[method-assign]
    Workspace(fake).bind(tape, SIZE).run()
    assert seen == [1024]
