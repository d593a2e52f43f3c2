"""An expression as text: numbered lines, the same for equal expressions on every machine."""

from __future__ import annotations

from dataclasses import fields

from mergeconf.dtypes import DType
from mergeconf.graph.nodes import AnyNode, Input, Item, children
from mergeconf.graph.walk import walk


def describe(root: AnyNode, inputs: tuple[str, ...] = ()) -> list[str]:
    """Return one line a node, operands before what uses them, equal nodes once.

    Args:
        root: The expression.
        inputs: What to call each input slot; `input 0` and so on where left out.
    """
    numbers: dict[int, int] = {}
    lines: list[str] = []
    known: dict[str, int] = {}
    for node in walk(root):
        text = _text(node, {id(child): numbers[id(child)] for child in children(node)}, inputs)
        if text not in known:
            known[text] = len(lines)
            lines.append(f"%{len(lines)} = {text}")
        numbers[id(node)] = known[text]
    return lines


def _text(node: AnyNode, numbers: dict[int, int], inputs: tuple[str, ...]) -> str:
    if isinstance(node, Input):
        label = inputs[node.slot] if node.slot < len(inputs) else f"input {node.slot}"
        return f"read {label} ({node.dtype})"
    if isinstance(node, Item):
        return f"item %{numbers[id(node.of)]} {node.index}"
    parts = [type(node).__name__.lower()]
    for item in fields(node):
        if item.name == "kind":
            continue
        parts.append(_field(getattr(node, item.name), numbers))
    return " ".join(part for part in parts if part)


def _field(value: object, numbers: dict[int, int]) -> str:
    if id(value) in numbers:
        return f"%{numbers[id(value)]}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_field(item, numbers) for item in value) + ")"
    if isinstance(value, DType):
        return str(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]
    return "" if value is None or value == "" else str(value)
