"""Calling a method: lazily, when a plan is made, and eagerly, on plain torch tensors.

Both wrap the same function in the same way: tensors are given as float32 unless the method
copies stored values, and the result is rounded once, to the output's format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergeconf.dtypes import DType
from mergeconf.graph.lazy import Lazy, Meaning, MeaningError
from mergeconf.graph.nodes import Cast, Node
from mergeconf.methods.registry import Method

if TYPE_CHECKING:
    import torch


def trace(
    method: Method,
    base: Node | None,
    models: Sequence[Node],
    shape: tuple[int, ...],
    parameters: Mapping[str, Any],
    out_dtype: DType,
) -> Node:
    """Return the expression of a method on stored nodes, rounded to the output's format.

    Args:
        method: The merge method.
        base: The base's stored tensor, or None.
        models: The other models' stored tensors, in the recipe's order.
        shape: Shape of all of them.
        parameters: Value of every parameter by its name; a tuple for a per-model one.
        out_dtype: Format of the output.

    Raises:
        ValueError: the method refuses these parameters or inputs.
        MeaningError: the method's formula makes no sense; a defect of the method.
    """

    def argument(node: Node | None) -> Lazy | None:
        if node is None:
            return None
        if not method.copies:
            node = Cast(node, DType.float32, "f32")
        return Lazy(node, shape, Meaning.weight)

    result = _call(method, argument(base), [argument(node) for node in models], parameters)
    if result.meaning is not Meaning.weight:
        raise MeaningError(f"{method.name} gives a {result.meaning.value} where a weight belongs")
    return as_output(result.node, out_dtype)


def as_output(node: Node, out_dtype: DType) -> Node:
    """Return a node in the output's format: as it is if it has that already."""
    if node.kind == "stored" and Lazy(node, ()).dtype is out_dtype:
        return node
    return Cast(node, out_dtype, "stored")


def evaluate(
    method: Method,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    name: str = "",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute a method on plain torch tensors, whole, with the result that a run gives.

    Args:
        method: The merge method.
        base: The base's tensor, or None.
        models: The other models' tensors, all of one shape.
        parameters: Value of every parameter by its name; a tuple for a per-model one.
        seed: The recipe's seed.
        name: Name of the output tensor, on which random draws depend.
        out_dtype: Format of the result; the base's, or else the first model's, if left out.

    Returns:
        A tensor of the inputs' shape; every NaN in it has the same bits.
    """
    import torch

    from mergeconf.graph import eager

    def argument(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return tensor if tensor is None or method.copies else tensor.to(torch.float32)

    result: torch.Tensor
    with eager.scope(seed, name):
        result = _call(method, argument(base), [argument(tensor) for tensor in models], parameters)
    target = out_dtype or (models[0] if base is None else base).dtype
    if result.dtype == target and method.copies:
        return result
    result = result.to(torch.float32)
    settled = torch.where(result.isnan(), torch.full_like(result, torch.nan), result)
    return settled.to(target)


def _call(method: Method, base: Any, models: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    keywords = {
        parameter.argument: parameters.get(name, _default(parameter, len(models)))
        for name, parameter in method.parameters.items()
    }
    if method.base == "unused":
        return method.function(*models, **keywords)
    return method.function(base, *models, **keywords)


def _default(parameter: Any, models: int) -> Any:
    return (parameter.default,) * models if parameter.per_model else parameter.default
