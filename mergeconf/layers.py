"""Which layer does a tensor belong to? Read from names alone, without architecture tables.

`model.layers.17.mlp.up_proj.weight` lies in the stack `model.layers`, layer 17, module
`mlp.up_proj`. The first whole-number part of a name is the layer's index; what stands before it
names the stack. A model may have several stacks (encoder and decoder, vision tower). Knows
nothing of files, recipes or methods.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands in a model."""

    stack: str | None
    """Name of the list of layers (`model.layers`), or None for a tensor outside all layers."""
    layer: int | None
    """Index of the layer in its stack, counted from 0, or None."""
    module: str
    """The rest of the name without the parameter's own: `mlp.up_proj`."""
    layers: int = 0
    """Number of layers in the stack, 0 for a tensor outside all layers."""
    span: tuple[int, int] | None = None
    """Position in its slice and the slice's number of layers, where a stack is made of slices."""

    @property
    def depth(self) -> float:
        """Relative depth in the slice or stack, 0 for the first layer and 1 for the last.

        As mergekit has it, a tensor before or after the layers has depth 0, and the only layer of
        a slice or stack has depth 1.
        """
        if self.layer is None:
            return 0.0
        layer, layers = self.span or (self.layer, self.layers)
        return 1.0 if layers == 1 else layer / (layers - 1)


def place_of(name: str, stacks: Mapping[str, int]) -> Place:
    """Return the place of a tensor; `stacks` maps each stack to its number of layers."""
    stack, layer, rest = _split(name)
    module = rest.rpartition(".")[0]
    if layer is None:
        return Place(None, None, module)
    return Place(stack, layer, module, stacks.get(stack, layer + 1))


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """Return each stack of layers with its number of layers: the largest index plus one."""
    stacks: dict[str, int] = {}
    for name in names:
        stack, layer, _ = _split(name)
        if layer is not None:
            stacks[stack] = max(stacks.get(stack, 0), layer + 1)
    return stacks


def follows_layers(name: str) -> bool:
    """Tell whether a tensor outside the layers comes after them: a final norm, a head.

    Read from the name without what its stack's name starts with (`norm.weight` of
    `model.norm.weight`). All others (embeddings, projectors, rotary tables) stand before the
    layers.
    """
    if _HEAD.search(name):
        return True
    return bool(_AFTER.search(name)) and not _BEFORE.search(name)


_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)(\.|$)")
_AFTER = re.compile(
    r"(^|[._])(norm|ln|layernorm|norm_f|head|score|classifier|output|pooler|cls|vocab|final)"
    r"([._]|$)",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"embed|embd|wte|wpe|position|rotary|vision|visual|audio|patch|multi_modal|mm_|adapter|merger"
    r"|[._]pre([._]|$)|^(ln|layernorm|norm)_pre",
    re.IGNORECASE,
)


def _split(name: str) -> tuple[str, int | None, str]:
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if index and part.isdecimal() and part.isascii():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return "", None, name
