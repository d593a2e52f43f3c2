"""Random inputs and parameters for any method: everything is read from the registry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.methods.registry import Method, Parameter
from support.harness import FLOATS, TORCH

MOST_MODELS = 8
SHAPES = (
    (), (0,), (1,), (1, 1), (1, 37), (37, 1), (3, 0, 5), (7, 11), (511,), (512,), (513,),
    (999,), (1000,), (1001,), (3, 5, 7), (2, 2500), (4099,), (71, 73),
)  # fmt: skip
"""0-d, empty, one element, one row or column, odd sizes, and around tiles of 1000."""
SPECIAL = (
    0.0, -0.0, 1e-45, -1e-45, 1e-40, 6e-8, 1e-7, 1.17549435e-38, 65504.0, 65520.0, -7e4, 3.3e38,
    3.4e38, -3.4028234e38, 1e300, math.inf, -math.inf, math.nan, 1.0, -1.0,
)  # fmt: skip
"""Zeros, subnormal numbers, the ends of the formats, infinities, NaN."""
FILLS = ("fine-tuned", "whole numbers", "any bits", "alike", "zero")


def models_of(method: Method, most: int = MOST_MODELS) -> st.SearchStrategy[int]:
    """Numbers of models that the method takes."""
    return st.integers(method.min_models, min(method.max_models or most, most))


def values_of(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Values of one parameter, for one model: its bounds' ends, its default, and in between."""
    if parameter.kind == "bool":
        return st.booleans()
    if parameter.kind == "choice":
        return st.sampled_from(parameter.choices)
    bounds = parameter.bounds
    low = -3.0 if bounds.low is None else bounds.low
    high = low + 6.0 if bounds.high is None else bounds.high
    if parameter.kind == "int":
        numbers = st.integers(math.ceil(low), math.floor(min(high, low + 6)))
        return numbers | st.sampled_from(parameter.choices) if parameter.choices else numbers
    known = [x for x in (0.0, 1.0, 0.5, low, high, parameter.default) if x is not None]
    return (st.sampled_from(known) | st.floats(low, high, allow_subnormal=False)).filter(
        bounds.contains
    )


@st.composite
def parameters_of(draw: st.DrawFn, method: Method, models: int) -> dict[str, Any]:
    """Return values of a random choice of a method's parameters, the required ones included."""
    values: dict[str, Any] = {}
    for name, parameter in method.parameters.items():
        if not parameter.required and draw(st.booleans()):
            continue
        one = values_of(parameter)
        if parameter.per_model:
            same = st.tuples(one).map(lambda value: value * models)
            each = st.tuples(*[one] * models)
            values[name] = draw(same | each)
        else:
            values[name] = draw(one)
    return values


@dataclass(frozen=True, repr=False)
class Case:
    """One call of a method."""

    method: Method
    base: torch.Tensor | None
    models: list[torch.Tensor]
    parameters: dict[str, Any]
    out_dtype: DType
    seed: int = 0
    name: str = ""

    def __repr__(self) -> str:
        inputs = [(tensor.dtype, tuple(tensor.shape), tensor) for tensor in self.inputs]
        role = "no base" if self.base is None else "base first"
        return (
            f"{self.method.name}({self.parameters}) -> {self.out_dtype}, seed {self.seed}, "
            f"name {self.name!r}, {role}: {inputs}"
        )

    @property
    def inputs(self) -> list[torch.Tensor]:
        """All tensors, the base first."""
        return [*([] if self.base is None else [self.base]), *self.models]


def tensors(
    count: int, shape: tuple[int, ...], dtypes: list[DType], fill: str, seed: int
) -> list[torch.Tensor]:
    """Return `count` tensors, all but the first being variants of the first."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def coin() -> torch.Tensor:
        return torch.rand(shape, generator=generator) < 0.5

    first = normal()
    values = []
    for index in range(count):
        match fill:
            case "fine-tuned":
                value = first + (coin() * normal() * 0.05 if index else 0.0)
            case "whole numbers":
                value = torch.randint(-3, 4, shape, generator=generator).to(torch.float64)
            case "any bits":
                values.append(_any_bits(shape, TORCH[dtypes[index]], generator))
                continue
            case "alike":
                value = first
            case _:
                value = torch.where(coin(), 0.0, -0.0)
        values.append(value.to(TORCH[dtypes[index]]))
    return values


def _any_bits(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    size = torch.empty((), dtype=dtype).element_size()
    count = torch.Size(shape).numel() * size
    noise = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return noise.view(dtype).reshape(shape)


@st.composite
def cases(
    draw: st.DrawFn,
    method: Method,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    most_models: int = MOST_MODELS,
) -> Case:
    """Return a call of a method on tensors of any of the shapes, any format and any content."""
    models = draw(models_of(method, most_models))
    parameters = draw(parameters_of(method, models))
    with_base = method.base == "required" or (method.base == "optional" and draw(st.booleans()))
    count = models + with_base
    shape = draw(st.sampled_from(shapes))
    one = st.sampled_from(FLOATS)
    dtypes = draw(st.tuples(one).map(lambda value: value * count) | st.tuples(*[one] * count))
    fill = draw(st.sampled_from(FILLS))
    seed = draw(st.integers(0, 2**32 - 1))
    values = tensors(count, shape, list(dtypes), fill, seed)
    numel = values[0].numel()
    if numel:
        place = st.tuples(
            st.integers(0, count - 1), st.integers(0, numel - 1), st.sampled_from(SPECIAL)
        )
        for index, position, special in draw(st.lists(place, max_size=6)):
            values[index].view(-1)[position] = torch.tensor(special, dtype=torch.float64)
    if method.copies and len(set(dtypes)) > 1:
        # What a NaN's bits become in another format is not defined, so neither is whether it
        # equals the base's; see test_nan_of_another_format.
        values = [torch.where(value.isnan(), 1, value) for value in values]
    return Case(
        method,
        values[0] if with_base else None,
        values[1:] if with_base else values,
        parameters,
        draw(one | st.just(dtypes[0])),
        seed=draw(st.sampled_from([0, 1, 2**64 - 1])),
        name=draw(st.sampled_from(["", "model.layers.0.mlp.up_proj.weight", "ä"])),
    )
