"""Which tensors of a model does an adapter change, and with which of its own?

A pure function of names and shapes. Matrices are stored as (out, in) by linear layers and
convolutions, as (in, out) by GPT-2's Conv1D, and embeddings as (tokens, width); each change is
said here in the base's own arrangement, so that nothing later needs to know the kind of layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeconf.checkpoint.adapter import Adapter
from mergeconf.checkpoint.adapter_names import Ambiguous, NameIndex
from mergeconf.errors import Problem, listed
from mergeconf.storage.safetensors_in import StoredTensor

_SHOWN = 3
"""Tensors named in one message."""
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.(?!weight$|bias$)(?P<adapter>[^.]+))?(\.(?P<parameter>weight|bias))?"
)
_PREFIXES = ("base_model.model.", "base_model.")
_WEIGHTS = ("weight", "in_proj_weight")
"""Parameters of a module that a product is added to: the second is torch's fused attention."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two matrices of a product, as it is stored."""

    tensor: StoredTensor
    transposed: bool
    """Whether it is stored the other way round."""


@dataclass(frozen=True, slots=True)
class Product:
    """`scale · left · right`, in the arrangement of the base's tensor."""

    left: Factor
    """rows × rank."""
    right: Factor
    """rank × width; of a tensor with more than two dimensions all but the first are the width."""
    rows: int
    rank: int
    width: int
    scale: float


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter makes of one tensor of a model."""

    name: str
    """The model's tensor."""
    saved: StoredTensor | None = None
    """Stands in place of the model's own, before anything is added."""
    product: Product | None = None
    """What is added."""
    magnitude: StoredTensor | None = None
    """DoRA: length of each row of the result, or of each column."""
    by_columns: bool = False
    """Whether lengths are those of columns."""
    offset: StoredTensor | None = None
    """What is added to a bias, times the scale."""
    offset_scale: float = 1.0


@dataclass(slots=True)
class _Module:
    """The adapter's tensors of one module."""

    parts: dict[str, StoredTensor] = field(default_factory=dict)
    """By part and parameter: `A.weight`, `B.bias`, `embedding_A`, `magnitude_vector`."""


def match_adapter(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Change], list[Problem]]:
    """Return the changes by name of the model's tensor, and all that does not fit.

    Args:
        adapter: The adapter.
        shapes: Of the model's tensors, by name; those that it ties to others included.
    """
    matcher = _Matcher(adapter, shapes)
    matcher.run()
    return matcher.changes, matcher.finish()


def module_weights(adapter: Adapter) -> tuple[str, ...]:
    """Return the names of the weights that an adapter changes, as its library calls them."""
    found: dict[str, None] = {}
    for name in adapter.tensors:
        part = _PART.fullmatch(_without_prefix(name))
        found[f"{_plain(part['module'])}.weight" if part else _plain(_without_prefix(name))] = None
    return tuple(found)


class _Matcher:
    """Finds the changes, and collects what does not fit."""

    def __init__(self, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.adapter, self.shapes = adapter, shapes
        self.changes: dict[str, Change] = {}
        self._index = NameIndex(shapes)
        self._layouts = _Layouts(shapes, adapter.settings.fan_in_fan_out)
        self._unknown: list[tuple[str, ...]] = []
        """What is said of each, and the name that was looked for."""
        self._ambiguous: list[tuple[str, tuple[str, ...]]] = []
        self._misfits: list[str] = []
        self._problems: list[Problem] = []
        self._saved: dict[str, StoredTensor] = {}

    def run(self) -> None:
        """Look at every tensor of the adapter."""
        modules: dict[str, _Module] = {}
        for name, stored in self.adapter.tensors.items():
            bare = _without_prefix(name)
            found = _PART.fullmatch(bare)
            if found is None:
                self._keep(bare, stored)
                continue
            part = found["part"]
            if part in ("A", "B"):
                part = f"{part}.{found['parameter'] or 'weight'}"
            parts = modules.setdefault(_plain(found["module"]), _Module()).parts
            if part in parts:
                self._misfits.append(f"{name} and {parts[part].name} are of two adapters")
            parts[part] = stored
        for module, content in modules.items():
            self._adapt(module, content.parts)
        for name, stored in self._saved.items():
            if name not in self.changes:
                self.changes[name] = Change(name, saved=stored)

    def finish(self) -> list[Problem]:
        """Return all that does not fit."""
        problems = list(self._problems)
        if self._unknown:
            problems.append(self._unknown_problem())
        for name, candidates in self._ambiguous[:_SHOWN]:
            problems.append(
                self._problem(f"{name} could be any of the model's {listed(candidates, _SHOWN)}")
            )
        if self._misfits:
            trained = self.adapter.settings.base_name
            problems.append(
                self._problem(
                    f"does not fit the model: {'; '.join(self._misfits[:_SHOWN])}"
                    + _rest(len(self._misfits)),
                    f"it was trained on {trained}" if trained else "",
                )
            )
        return problems

    # --- names --------------------------------------------------------------------------------

    def _find(self, said: str, *names: str) -> str | None:
        """Return the first of the names that the model has, as the model spells it.

        Where there is none, or one could be several, that is noted.
        """
        for name in names:
            try:
                target = self._index.find(name)
            except Ambiguous as error:
                self._ambiguous.append((name, error.args))
                return None
            if target is not None:
                return target
        self._unknown.append((said, *names[:1]))
        return None

    def _keep(self, name: str, stored: StoredTensor) -> None:
        """Take a tensor that stands in place of the model's own."""
        if ".lora_" in name or ".token_adapter." in name:
            self._unknown.append((name,))
            return
        target = self._find(name, _plain(name))
        if target is None:
            return
        shape = self.shapes[target]
        if target in self._saved:
            self._misfits.append(f"{name} and {self._saved[target].name} are both {target}")
        elif stored.shape != shape:
            resized = " (the vocabulary was resized: resize the model's first)"
            self._misfits.append(
                f"{name} {list(stored.shape)} stands for {target} {list(shape)}"
                + (resized if stored.shape[1:] == shape[1:] else "")
            )
        else:
            self._saved[target] = stored

    # --- products -----------------------------------------------------------------------------

    def _adapt(self, module: str, parts: dict[str, StoredTensor]) -> None:
        target = self._find(module, *(f"{module}.{parameter}" for parameter in _WEIGHTS))
        if target is None:
            return
        if target in self.changes:
            self._misfits.append(f"{target} is changed by two modules, one of them {module}")
            return
        embedding = "embedding_A" in parts or "embedding_B" in parts
        names = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
        if missing := [name for name in names if name not in parts]:
            self._misfits.append(f"{module} lacks its lora_{missing[0].removesuffix('.weight')}")
            return
        a, b = (parts[name] for name in names)
        product = self._product(module, target, a, b, embedding)
        if product is None:
            return
        magnitude = parts.get("magnitude_vector")
        if (magnitude is not None) != self.adapter.settings.dora:
            said = "but use_dora is false" if magnitude else "though use_dora is true"
            self._misfits.append(f"{module} has {'a' if magnitude else 'no'} magnitude, {said}")
            return
        by_columns = product.left.transposed
        length = product.width if by_columns else product.rows
        if magnitude is not None and math.prod(magnitude.shape) != length:
            self._misfits.append(
                f"{magnitude.name} {list(magnitude.shape)} is not one number for each of {length}"
            )
            return
        saved = self._saved.get(target)
        self.changes[target] = Change(target, saved, product, magnitude, by_columns)
        if "B.bias" in parts:
            self._shift(module, target, parts["B.bias"], product.scale)

    def _shift(self, module: str, weight: str, offset: StoredTensor, scale: float) -> None:
        """Take a bias that was trained beside the product."""
        name = weight.removesuffix("weight") + "bias"
        if self.shapes.get(name) != offset.shape:
            self._misfits.append(f"{module} has a bias of its own, and the model's has none there")
            return
        self.changes[name] = Change(name, self._saved.get(name), offset=offset, offset_scale=scale)

    def _product(
        self, module: str, target: str, a: StoredTensor, b: StoredTensor, embedding: bool
    ) -> Product | None:
        rank = a.shape[0] if a.shape else 0
        expected = self.adapter.settings.rank_of(module)
        shape = self.shapes[target]
        rows, width = (shape[0] if shape else 0), math.prod(shape[1:])
        if not (a.dtype.is_float and b.dtype.is_float):
            self._misfits.append(f"{a.name} is stored as {a.dtype}")
            return None
        if rank != expected:
            self._misfits.append(
                f"{a.name} {list(a.shape)} has rank {rank}, but the config says {expected}"
            )
            return None
        straight = (
            len(shape) >= 2
            and a.shape == (rank, *shape[1:])
            and b.shape == (rows, rank, *[1] * (len(shape) - 2))
        )
        swapped = len(shape) == 2 and a.shape == (rank, rows) and b.shape == (width, rank)
        if embedding:
            straight = False
        elif straight and swapped:
            swapped = self._layouts.is_swapped(target)
        if not (straight or swapped):
            self._misfits.append(
                f"{_without_prefix(a.name)} {list(a.shape)} and B {list(b.shape)} do not make "
                f"{target} {list(shape)}"
            )
            return None
        scale = self.adapter.settings.scale_of(module)
        left, right = (a, b) if swapped else (b, a)
        return Product(Factor(left, swapped), Factor(right, swapped), rows, rank, width, scale)

    # --- messages -----------------------------------------------------------------------------

    def _unknown_problem(self) -> Problem:
        names = [said for said, *_ in self._unknown]
        near = [
            self._index.nearest(name) for _, *wanted in self._unknown[:_SHOWN] for name in wanted
        ]
        hints = [f"the model has {name}" for name in near if name][:1]
        if trained := self.adapter.settings.base_name:
            hints.append(f"it was trained on {trained}")
        one = len(names) == 1
        return self._problem(
            f"{'one of its modules is' if one else f'{len(names):,} of its modules are'} not in "
            f"the model: {listed(names, _SHOWN)}",
            "; ".join(hints),
        )

    def _problem(self, message: str, hint: str = "") -> Problem:
        return Problem(message, where=self.adapter.label, hint=hint)


def _rest(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _plain(name: str) -> str:
    """Return a name without what peft's wrapping of modules puts into it."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


class _Layouts:
    """Tells for square matrices whether they are stored as (in, out), as Conv1D does.

    Conv1D always has a bias, as long as the output. Where a matrix of the same list of layers is
    not square, the length of its bias says which of its sides is the output; where all are
    square, the adapter's config decides.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], otherwise: bool) -> None:
        self._shapes, self._otherwise = shapes, otherwise
        self._known: dict[str, bool | None] = {}

    def is_swapped(self, weight: str) -> bool:
        """Tell whether a square matrix is stored as (in, out)."""
        if self._bias(weight) is None:
            return False
        stack = _stack(weight)
        if stack not in self._known:
            self._known[stack] = self._look(stack)
        found = self._known[stack]
        return self._otherwise if found is None else found

    def _look(self, stack: str) -> bool | None:
        for name, shape in self._shapes.items():
            if len(shape) != 2 or shape[0] == shape[1] or _stack(name) != stack:
                continue
            bias = self._bias(name)
            if bias is not None and bias in ((shape[0],), (shape[1],)):
                return bias == (shape[1],)
        return None

    def _bias(self, weight: str) -> tuple[int, ...] | None:
        return self._shapes.get(weight.removesuffix("weight") + "bias")


def _stack(name: str) -> str:
    return re.split(r"\.?\d+\.", name, maxsplit=1)[0]
