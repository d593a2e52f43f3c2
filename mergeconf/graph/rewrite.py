"""Rebuild an expression bottom-up: to make equal parts one object, or to put in other inputs.

Nodes compare by structure, which costs time that grows with everything below them. In an
expression that `interned` returns, two parts are equal exactly where they are the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_args

from mergeconf.graph.nodes import AnyNode, Input, Node, Random
from mergeconf.graph.walk import walk

_NODES: tuple[Any, ...] = get_args(AnyNode)
_NAMES: Mapping[object, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in _NODES
}


def interned(root: Node) -> Node:
    """Return an equal expression whose equal parts are one object.

    Numbers count as equal where their bits are: 0.0 and −0.0 are two constants.
    """
    known: dict[object, AnyNode] = {}

    def change(node: AnyNode) -> AnyNode:
        values = (_identity(getattr(node, name)) for name in _NAMES[type(node)])
        return known.setdefault((type(node), *values), node)

    return rebuilt(root, change)


def substitute(
    root: Node, inputs: Mapping[int, Node], scopes: Mapping[int, int] | None = None
) -> Node:
    """Return an expression that has other expressions in the place of its inputs.

    Args:
        root: The expression.
        inputs: What to put in for each input slot, in the same format.
        scopes: New `Random.scope` by the old one; unchanged where left out.
    """

    def change(node: AnyNode) -> AnyNode:
        if isinstance(node, Input):
            return inputs[node.slot]
        if isinstance(node, Random) and scopes is not None:
            return Random(node.stream, node.model, node.draw, scopes[node.scope])
        return node

    return rebuilt(root, change)


def rebuilt(root: Node, change: Callable[[AnyNode], AnyNode]) -> Node:
    """Return the expression with each node, its operands changed, replaced by `change` of it."""
    done: dict[int, AnyNode] = {}
    for node in walk(root):
        old = [getattr(node, name) for name in _NAMES[type(node)]]
        new = [_replaced(value, done) for value in old]
        same = all(one is other for one, other in zip(old, new, strict=True))
        done[id(node)] = change(node if same else type(node)(*new))
    return done[id(root)]  # type: ignore[return-value]


def _replaced(value: Any, done: Mapping[int, AnyNode]) -> Any:
    if isinstance(value, _NODES):
        return done[id(value)]
    if isinstance(value, tuple):
        items = tuple(_replaced(item, done) for item in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _identity(value: Any) -> object:
    """Return what stands for a field's value when nodes are compared."""
    if isinstance(value, _NODES):
        return ("node", id(value))
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    if isinstance(value, float):
        return ("float", value.hex())
    return (type(value), value)
