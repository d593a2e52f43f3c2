"""What did the user ask for? The loaded form of a recipe: frozen data, every part with its place.

Made by `load_recipe`, which has checked it; nothing here checks again. Knows nothing of YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergeconf.errors import Location, Problem
from mergeconf.methods import Method
from mergeconf.recipe.patterns import Matcher
from mergeconf.recipe.values import Value

DEFAULT_SHARD_SIZE = 5 * 10**9
"""Size of an output file where the recipe names none, in bytes."""

_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[^@]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as the recipe names it: a local folder or file, a repository of the Hub, or a
    merge."""

    text: str
    """As written; `path@revision` where it was written as a mapping."""
    location: Location | None = field(default=None, compare=False)
    merge: Recipe | None = field(default=None, compare=False)
    """The recipe that makes it, where it is itself a merge; `text` is then its name."""
    adapted: tuple[ModelRef, ModelRef] | None = field(default=None, compare=False)
    """A model and the adapter that is added to it, where that is what it is."""

    @property
    def hub_id(self) -> str | None:
        """The text as an id on the Hub (`org/name`), without revision, or None if it is none."""
        found = None if self.merge or self.adapted else _HUB_ID.fullmatch(self.text)
        return found["id"] if found else None

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit after the `@`, or None."""
        found = None if self.adapted else _HUB_ID.fullmatch(self.text)
        return found["revision"] if found else None

    def local_path(self, folder: Path) -> Path:
        """Return where the model would lie as a local one; `folder` is that of the recipe."""
        return folder / Path(self.text).expanduser()

    @property
    def key(self) -> str:
        """What two spellings of one model share: `./a/` and `a`, `org/b@main` and `org/b`."""
        if self.merge is not None:
            return f"merge {self.text}"
        if self.adapted is not None:
            return "+".join(part.key for part in self.adapted)
        if self.revision == "main":
            return self.hub_id or self.text
        return os.path.normpath(self.text)

    def __str__(self) -> str:
        return self.text


KeyPath = tuple[str | int, ...]
"""Where in the recipe a part stands: `("slices", 0, "sources", 1)`."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One item of `models`, or of a slice's `sources`."""

    index: int
    """Position in its list, counted from 0."""
    model: ModelRef
    parameters: Mapping[str, Value]
    """Parameters set for this model alone."""
    location: Location | None
    path: KeyPath = ()
    """`("models", 1)`, `("slices", 0, "sources", 1)`."""
    layer_range: tuple[int, int] | None = None
    """First layer and the one after the last, for a source of a slice."""
    range_location: Location | None = field(default=None, compare=False)

    @property
    def layers(self) -> int:
        """Number of layers that it gives to a slice."""
        return self.layer_range[1] - self.layer_range[0] if self.layer_range else 0


@dataclass(frozen=True, slots=True)
class Scope:
    """Models that are merged with each other: those of `models`, of one slice, of one module.

    A recipe with `models` has one scope, with `slices` one a slice, with `modules` those of each
    module. Every output tensor belongs to one scope.
    """

    index: int
    """Position among the recipe's scopes, counted from 0."""
    path: KeyPath
    """Empty for the recipe's `models`; `("slices", 0)`; `("modules", "text", "slices", 0)`."""
    entries: tuple[ModelEntry, ...]
    """As listed, the base included where it is listed."""
    base_model: ModelRef | None
    """The slice's own base, or the recipe's."""
    parameters: tuple[tuple[KeyPath, Mapping[str, Value]], ...] = ()
    """Of the slice and of the module, strongest first, each with its place."""
    module: str | None = None
    """Key in `modules`."""
    sliced: bool = False
    """Whether it is a slice: its entries have ranges of layers, all of one length."""
    location: Location | None = None

    @property
    def list_path(self) -> KeyPath:
        """Place of the list of its models."""
        return (*self.path, "sources" if self.sliced else "models")

    @property
    def layers(self) -> int:
        """Number of layers that a slice gives to the output."""
        return self.entries[0].layers if self.entries else 0

    def merged(self, method: Method) -> tuple[ModelEntry, ...]:
        """Return the models that a method merges, in order: without the base where it uses one."""
        if method.base == "unused" or self.base_model is None:
            return self.entries
        base = self.base_model.key
        return tuple(entry for entry in self.entries if entry.model.key != base)

    def lacks_base(self, method: Method) -> bool:
        """Tell whether a method uses the base, but no source of this slice says which layers."""
        if method.base == "unused" or self.base_model is None or not self.sliced:
            return False
        return all(entry.model.key != self.base_model.key for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Rule:
    """One item of `rules`: for some tensors, a method, a model to copy from, or leaving out.

    Exactly one of `method`, `take` and `drop` is set.
    """

    index: int
    """Position in the recipe's list, counted from 0."""
    matcher: Matcher
    method: str | None
    """Merge method; the recipe's own where the rule only sets parameters."""
    take: ModelRef | None
    """Model to copy the tensor from, bit for bit."""
    drop: bool
    """Whether the tensor is left out of the output."""
    parameters: Mapping[str, Value]
    location: Location | None


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the embedding of one token is taken from."""

    kind: Literal["zero", "model", "token"]
    """Zeros; the same token of a model; or another token of a model."""
    model: ModelRef | None = None
    token: str | None = None
    """The other token, by its text."""
    token_id: int | None = None
    """The other token, by its id in that model."""


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """What the recipe says of one token."""

    token: str
    source: TokenSource | None
    force: bool
    """Whether models that have the token take the embedding from the source too."""
    path: KeyPath
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """The tokenizer of the output, and the embeddings of its tokens."""

    source: Literal["union", "base"] | ModelRef
    tokens: tuple[TokenEntry, ...]
    pad_to_multiple_of: int | None
    """The number of rows of the output's embeddings is a multiple of it."""
    path: KeyPath
    """Where the source stands."""
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A whole recipe, checked as far as that is possible without looking at models.

    Exactly one of `method` and `take` is set. Two recipes are equal only when they are one object.
    """

    text: str
    """The file's text unchanged (of a mapping, YAML that reads as the same)."""
    path: Path | None
    """The file, or None where the recipe was given as text or as a mapping."""
    folder: Path
    """Folder that relative local models start from."""
    name: str
    """Name given in the recipe, or that of the file without its ending."""
    method: str | None
    take: ModelRef | None
    """Model that tensors which no rule fits are copied from."""
    base_model: ModelRef | None
    scopes: tuple[Scope, ...]
    """What is merged with what: one scope for `models`, one for each slice."""
    parameters: Mapping[str, Value]
    """Parameters for all models."""
    rules: tuple[Rule, ...]
    seed: int
    """At least 0, below 2**64."""
    seed_scope: str
    """Which of the merges that share the seed this is, where it is nested in another recipe and
    names no seed of its own; else empty."""
    dtype: str | None
    """`dtype` of the recipe: float64, float32, float16 or bfloat16."""
    out_dtype: str | None
    """`out_dtype` of the recipe, of the same names."""
    shard_size: int
    """Most bytes of tensors in one output file."""
    metadata: Mapping[str, Any]
    """Plain data for the model card."""
    warnings: tuple[Problem, ...]
    """What is harmless but not as the user may think; silenced ones are left out."""
    silenced: frozenset[str]
    """Codes of warnings that the recipe does not want to see."""
    locations: Mapping[str, Location]
    """Place of the value of each top-level key that the recipe has."""
    tokenizer: TokenizerChoice | None = None
    """None where the output has the tokenizer of the base, or of the first model."""
    chat_template: str | None = None
    """Name of a template, `auto`, or the template itself."""

    @property
    def output_dtype(self) -> str | None:
        """Name of the output's dtype, or None where each tensor keeps the one it has."""
        return self.out_dtype or self.dtype

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """Every item of `models` or `sources`, in order."""
        return tuple(entry for scope in self.scopes for entry in scope.entries)

    @property
    def assembled(self) -> bool:
        """Whether the output is put together from slices or modules."""
        return any(scope.path for scope in self.scopes)

    def referenced(self) -> tuple[ModelRef, ...]:
        """Return every model once, the base first."""
        found: dict[str, ModelRef] = {}
        bases = [self.base_model, *(scope.base_model for scope in self.scopes)]
        for model in (*bases[:1], *(entry.model for entry in self.models), *bases[1:]):
            if model is not None:
                found.setdefault(model.key, model)
        return tuple(found.values())
