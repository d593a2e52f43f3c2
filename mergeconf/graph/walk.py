"""Go through an expression: every node once, operands first."""

from __future__ import annotations

from mergeconf.graph.nodes import AnyNode, children


def walk(root: AnyNode) -> list[AnyNode]:
    """Return all nodes of an expression, each once (by identity), children before parents."""
    order: list[AnyNode] = []
    seen: set[int] = set()
    stack: list[tuple[AnyNode, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(list(children(node))))
    return order
