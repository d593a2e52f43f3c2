"""Which stored tensor of which model stands behind each name, tied weights included?

Names are those in the checkpoint files. A weight that a model ties to another (an output head
that is the embedding) may be stored once or twice; here it is treated once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeconf.layers import Place, place_of, stacks_of
from mergeconf.plan.data import Dropped
from mergeconf.plan.depth import Depth
from mergeconf.plan.sources import Model, Source

TIED_TO_EMBEDDING = (
    "lm_head.weight", "embed_out.weight", "decoder.weight", "shared_head.head.weight",
)  # fmt: skip
"""Ends of names of weights that are the embedding where a config ties word embeddings."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight",
              "embed_in.weight", "tok_embeddings.weight")  # fmt: skip
"""Ends of names of word embeddings."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Every name that any model has, and where each model keeps it."""

    models: tuple[Model, ...]
    names: tuple[str, ...]
    """All names, in the order of the first model that has them."""
    places: dict[str, Place]
    sources: dict[str, dict[str, Source]]
    """By name, by label of the model."""
    tied_copies: tuple[Dropped, ...]
    """Stored copies of tied weights, which the output does not need."""
    untied: frozenset[str]
    """Heads for which models that tie them are merged with such that do not."""
    scopes: Mapping[str, int | None] = field(default_factory=dict)
    """Index of the recipe's scope that each tensor belongs to, 0 for those left out; None where
    no module names it."""
    depths: tuple[Depth, ...] = ()
    """Stacks that are made of slices."""


def align(models: Sequence[Model]) -> Alignment:
    """Return where each model keeps each tensor."""
    sources: dict[str, dict[str, Source]] = {}
    for model in models:
        for name, stored in model.tensors.items():
            sources.setdefault(name, {})[model.label] = stored
    copies, untied = _settle_ties(models, sources)
    stacks = stacks_of(sources)
    places = {name: place_of(name, stacks) for name in sources}
    return Alignment(tuple(models), tuple(sources), places, sources, copies, untied)


def _settle_ties(
    models: Sequence[Model], sources: dict[str, dict[str, Source]]
) -> tuple[tuple[Dropped, ...], frozenset[str]]:
    """Leave out copies of tied heads; where some models have a head of their own, lend the
    others' embedding to it."""
    copies: list[Dropped] = []
    untied: set[str] = set()
    says = {model.label: says_tied(model.config) for model in models}
    silent = [m.label for m in models if says[m.label] is None and has_word_head(m.config)]
    heads = [name for name in sources if name.endswith(TIED_TO_EMBEDDING)]
    for head in heads:
        embedding = embedding_of(head, sources)
        if embedding is None:
            continue
        having, embeddings = sources[head], sources[embedding]
        tying = [label for label, tied in says.items() if tied]
        tying += [label for label in silent if label not in having]
        tied = {label for label in tying if _may_be_tied(label, having, embeddings)}
        free = [label for label in having if label not in tied]
        if not free:
            copies.append(Dropped(head, tuple(having), f"tied to {embedding}"))
            del sources[head]
        elif tied:
            having.update({label: embeddings[label] for label in embeddings if label in tied})
            untied.add(head)
    return tuple(copies), frozenset(untied)


def _may_be_tied(
    label: str, having: Mapping[str, Source], embeddings: Mapping[str, Source]
) -> bool:
    """Tell whether a model's head, or the head that it lacks, has the form of its embedding.

    What is only named like a head (`vision.decoder.weight`) has not.
    """
    embedding = embeddings.get(label)
    if embedding is None:
        return False
    own = having.get(label)
    if own is not None:
        return (own.shape, own.dtype) == (embedding.shape, embedding.dtype)
    return all(other.shape[1:] == embedding.shape[1:] for other in having.values())


def embedding_of(head: str, names: Mapping[str, Any]) -> str | None:
    """Return the embedding nearest to a head: that with the longest common start."""
    found = [name for name in names if name.endswith(EMBEDDINGS)]
    prefix = head[: -len(next(end for end in TIED_TO_EMBEDDING if head.endswith(end)))]
    same = [name for name in found if name.startswith(prefix)]
    return min(same or found, key=lambda name: (len(name), name), default=None)


def says_tied(config: dict[str, Any] | None) -> bool | None:
    """Tell whether a config says that word embeddings are tied, in itself or its text part.

    None where it says nothing: the type of model decides then, and so whether a head is stored.
    """
    for section in _sections(config):
        if "tie_word_embeddings" in section:
            return bool(section["tie_word_embeddings"])
    return None


def ties_embeddings(config: dict[str, Any] | None) -> bool:
    """Tell whether a config says that word embeddings are tied."""
    return bool(says_tied(config))


def has_word_head(config: dict[str, Any] | None) -> bool:
    """Tell whether a config's class gives words, so that a head that is not stored is tied."""
    if config is None:
        return False
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return True
    return any(re.search("LM|Generation|PreTraining", str(name)) for name in names)


def _sections(config: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if config is None:
        return
    yield config
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            yield inner
