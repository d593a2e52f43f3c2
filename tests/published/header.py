"""What does a published recipe have to give? Read from its first comment lines, not from the code.

    # Frankenmerge of two slices: the shape, in words.
    # expect: layers=40 method=passthrough warnings=none shape=llama
    # input: model.layers.24.mlp.up_proj.weight <- org/Model model.layers.16.mlp.up_proj.weight
    # value: model.layers.39.mlp.up_proj.weight scale=0.5
    # vocab: org/Model <|im_start|> <|im_end|>

`layers` is the number of layers of the output (of each stack, where the shape has several:
`encoder.block:3,decoder.block:2`), `depth` that of the models where it does not follow from the
recipe, `method` those that decide any tensor (`take`: copied), `warnings` the codes of all
warnings. `mergekit` is `no` where mergekit (0.1.5, with its environment's transformers) refuses
recipe or models, `hub` where it needs the Hub for them, and `other` where its result differs on
purpose: a base merged in, experts under other names, ids of a union's tokens, which it deals out
anew each run. `input` is a source of a tensor, `value` a parameter's value for a tensor (one
number, or one a merged model), `vocab` the tokens that a model
has beyond the others', and `rows` how many rows the output's embeddings have then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from published.shapes import SHAPES, Shape

RECIPES = Path(__file__).with_name("recipes")
DEFAULT_LAYERS = 4
"""Layers of a model of a recipe that does not say."""


@dataclass(frozen=True)
class Published:
    """A recipe and what it has to give."""

    path: Path
    text: str
    title: str
    shape: Shape
    layers: dict[str, int]
    """Number of layers of each stack of the output."""
    depth: dict[str, int]
    """Number of layers of each stack of the models."""
    methods: frozenset[str]
    warnings: frozenset[str]
    mergekit: str
    """Whether mergekit 0.1.5 merges it: yes, no, only with the Hub, or with another result."""
    rows: int | None
    """Size of the output's vocabulary, where it is not that of every model."""
    inputs: tuple[tuple[str, str, str], ...]
    """A tensor of the output, a model, and the tensor of that model that it is made from."""
    values: tuple[tuple[str, str, tuple[float, ...]], ...]
    """A tensor of the output, a parameter, and its value, or one value a merged model."""
    vocabulary: dict[str, tuple[str, ...]]
    """Tokens that a model has beyond the others', by model."""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The recipe as plain YAML: one mapping a document."""
        return [data for data in yaml.safe_load_all(self.text) if data is not None]


def read(path: Path) -> Published:
    """Return a recipe of `recipes/` with its header."""
    text = path.read_text()
    comments = re.match(r"(#.*\n)+", text)
    assert comments, f"{path.name} has no header"
    title, *lines = [line.lstrip("# ") for line in comments[0].splitlines()]
    said: dict[str, list[str]] = {}
    for line in lines:
        key, _, rest = line.partition(":")
        assert key in ("expect", "input", "value", "vocab"), f"{path.name}: {line}"
        said.setdefault(key, []).append(rest.strip())
    (expected,) = said["expect"]
    fields = dict(item.split("=", 1) for item in expected.split())
    shape = SHAPES[fields.pop("shape", "llama")]
    layers = _counts(fields.pop("layers"), shape)
    depth = _counts(fields.pop("depth", str(_depth(text))), shape)
    found = Published(
        path, text, title, shape, layers, depth,
        frozenset(fields.pop("method").split(",")),
        frozenset(fields.pop("warnings").split(",")) - {"none"},
        fields.pop("mergekit", "yes"),
        int(fields.pop("rows", 0)) or None,
        tuple(_inputs(said.get("input", []))),
        tuple(_values(said.get("value", []))),
        {line.split()[0]: tuple(line.split()[1:]) for line in said.get("vocab", [])},
    )  # fmt: skip
    assert not fields, f"{path.name}: {fields}"
    return found


def _counts(text: str, shape: Shape) -> dict[str, int]:
    if text.isdecimal():
        (stack,) = shape.stacks
        return {stack: int(text)}
    found = {part.split(":")[0]: int(part.split(":")[1]) for part in text.split(",")}
    assert set(found) == set(shape.stacks)
    return found


def _depth(text: str) -> int | str:
    """Return the highest layer that any range of a recipe ends at."""
    ranges = re.findall(r"^[^#\n]*layer_range:\s*\[\s*\d+,\s*(\d+)\s*\]", text, re.MULTILINE)
    return max(map(int, ranges), default=DEFAULT_LAYERS)


def _inputs(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        name, source = line.split(" <- ")
        model, stored = source.split()
        yield name, model, stored


def _values(lines: list[str]) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    for line in lines:
        name, setting = line.split(maxsplit=1)
        parameter, numbers = setting.split("=")
        yield name, parameter, tuple(float(number) for number in numbers.split())


def all_recipes() -> list[Published]:
    """Return every recipe of `recipes/`, by name."""
    return [read(path) for path in sorted(RECIPES.glob("*.yaml"))]
