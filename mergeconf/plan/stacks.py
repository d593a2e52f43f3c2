"""Which stack of layers do `slices` mean, and which tensors each of `modules`?

Read from names, with the config as a cross-check; there are no tables of architectures, only the
names that mergekit's tables give to the parts of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeconf.errors import Location, Problem, did_you_mean
from mergeconf.layers import Place, stacks_of
from mergeconf.plan.depth import layer_counts
from mergeconf.plan.sources import Model
from mergeconf.recipe import Recipe, Scope

_WORDS = {
    "text_decoder": re.compile(
        r"^(?!.*(vision|visual|vit|audio|encoder)).*(layers|blocks|h)$"
    ),
    "vision_tower": re.compile(r"vision|visual|vit"),
    "vision_model": re.compile(r"vision|visual|vit"),
    "default": re.compile(""),
}  # fmt: skip
"""mergekit's names for stacks that are called otherwise in the files."""
_LOOSE_WORDS = {
    "multi_modal_projector": re.compile(r"(^|\.)(merger|connector|mm_projector|deepstack_merger)")
}
"""mergekit's names for parts without layers of their own, and how files call them."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stack of layers, or a group of tensors without one, and the scopes that make it."""

    module: str | None
    """Key in `modules`; None for the recipe's `slices`."""
    stack: str | None
    scopes: tuple[Scope, ...]

    @property
    def prefix(self) -> str:
        """Start of the names that belong to the stack: `model.` of `model.layers`."""
        return "" if self.stack is None else self.stack.rpartition(".")[0] + "."

    def names(self, name: str) -> bool:
        """Tell whether the module's key is a part of a tensor's name, before any number."""
        if self.module is None:
            return False
        words = _LOOSE_WORDS.get(self.module)
        start = re.split(r"\.\d+\.", name, maxsplit=1)[0]
        return f".{self.module}." in f".{start}." or bool(words and words.search(start))


_BOUND = re.compile(
    r"(embed_tokens_per_layer|per_layer_model_projection|contact_head\.regression)\.weight$"
    r"|\.shared_transformer\..*_adapter_list\.\d"
)
"""Tensors that have a part for every layer, or are numbered by other layers: Gemma 3n and 4, ESM,
Zamba 2."""


def find_parts(
    recipe: Recipe, models: Mapping[str, Model]
) -> tuple[tuple[Part, ...], list[Problem]]:
    """Return the parts that slices or modules make, and what cannot be found."""
    first = models[recipe.models[0].model.key]
    by_module: dict[str | None, list[Scope]] = {}
    for scope in recipe.scopes:
        by_module.setdefault(scope.module, []).append(scope)
    parts, problems = [], []
    for module, scopes in by_module.items():
        found: str | Problem | None
        if module is None:
            found = _only_stack(first, recipe.locations.get("slices"))
        else:
            found = _named_stack(module, first, scopes)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            part = Part(module, found, tuple(scopes))
            parts.append(part)
            misfits = list(_misfits(part, models))
            problems.extend(misfits or _bound(part, first))
    twice = {part.stack for part in parts if part.stack} if len(parts) > 1 else set()
    for stack in twice:
        same = [part for part in parts if part.stack == stack]
        if len(same) > 1:
            names = " and ".join(f"'{part.module}'" for part in same)
            where, location = f"modules.{same[1].module}", same[1].scopes[0].location
            problems.append(Problem(f"{names} mean the same layers, {stack}", where, location))
    return tuple(parts), problems


def _only_stack(model: Model, location: Location | None) -> str | Problem:
    """Return the stack of a model that has one, or that of which its config speaks."""
    stacks = stacks_of(model.tensors)
    if len(stacks) == 1:
        return next(iter(stacks))
    if not stacks:
        message = f"'{model.label}' has no layers: no tensor has a number in its name"
        return Problem(message, "slices", location)
    counts = set(layer_counts(model.config))
    meant = [stack for stack, count in stacks.items() if count in counts]
    if len(meant) == 1:
        return meant[0]
    said = ", ".join(f"{stack} ({count} layers)" for stack, count in stacks.items())
    return Problem(
        f"'{model.label}' has several stacks of layers: {said}",
        "slices",
        location,
        "say which under 'modules', for example "
        f"modules: {{{next(iter(stacks)).rpartition('.')[0]}: {{slices: ...}}}}",
    )


def _named_stack(
    module: str, model: Model, scopes: Sequence[Scope]
) -> str | Problem | None:  # fmt: skip
    """Return the stack that a module's key means, None for a part without layers."""
    stacks = stacks_of(model.tensors)
    found = list(_candidates(module, tuple(stacks)))
    if len(found) > 1:  # prefer the stack that a config speaks of
        counts = set(layer_counts(model.config))
        found = [stack for stack in found if stacks[stack] in counts] or found
    where, location = f"modules.{module}", scopes[0].location
    if len(found) > 1:
        hint = f"write one of them: {', '.join(found)}"
        return Problem(f"'{module}' can mean several stacks of layers", where, location, hint)
    if found:
        return found[0]
    loose = Part(module, None, ())
    if any(loose.names(name) for name in model.tensors):
        if not scopes[0].sliced:
            return None
        hint = "list its models under 'models'"
        return Problem(f"'{module}' has no layers to slice", where, location, hint)
    names = _names_of(tuple(stacks), model)
    hint = did_you_mean(module, names)
    if hint.startswith("did"):
        hint += f" valid: {', '.join(names)}"
    return Problem(f"'{model.label}' has no module '{module}'", where, location, hint)


def _names_of(stacks: Sequence[str], model: Model) -> list[str]:
    """Return the names that a user may write for the modules of a model."""
    names = [stack.rpartition(".")[0] or stack for stack in stacks]
    if len(stacks) == 1:
        names.append("default")
    words = [word for word in _WORDS if word != "default" and word != "vision_model"]
    names += [word for word in words if len(list(_candidates(word, stacks))) == 1]
    for name in model.tensors:
        top = name.partition(".")[0]
        if not any(stack == top or stack.startswith(f"{top}.") for stack in stacks):
            names.append(top)
    return list(dict.fromkeys(names))


def _candidates(module: str, stacks: Sequence[str]) -> Iterator[str]:
    """Yield the stacks that a module's key can mean, by the strictest reading that gives any."""
    exact = [s for s in stacks if module in (s, s.rpartition(".")[0])]
    part = [s for s in stacks if f".{module}." in f".{s}."]
    word = _WORDS.get(module)
    if exact or part or word is None:
        yield from exact or part
        return
    loose = _LOOSE_WORDS.values()  # numbered parts of a projector are no layers of a tower
    fitting = [s for s in stacks if word.search(s)]
    yield from [s for s in fitting if not any(w.search(s) for w in loose)] or fitting


def _misfits(part: Part, models: Mapping[str, Model]) -> Iterator[Problem]:
    """Yield the sources that lack the stack or its layers."""
    if part.stack is None:
        return
    for scope in part.scopes:
        for entry in scope.entries:
            model = models[entry.model.key]
            stacks = stacks_of(model.tensors)
            where = ".".join(map(str, entry.path))
            if part.stack not in stacks:
                has = ", ".join(f"{name} ({n} layers)" for name, n in stacks.items()) or "none"
                message = f"'{model.label}' has no layers '{part.stack}'"
                yield Problem(message, where, entry.location, f"its stacks of layers: {has}")
            elif entry.layer_range and entry.layer_range[1] > stacks[part.stack]:
                count = stacks[part.stack]
                hint = f"its layers are 0 to {count - 1}, and a range ends at most at {count}"
                if (first := entry.layer_range[0]) < count:
                    hint += f": [{first}, {count}]"
                yield Problem(
                    f"{list(entry.layer_range)} goes beyond the {count} layers of '{model.label}'",
                    f"{where}.layer_range",
                    entry.range_location,
                    hint,
                )


def _bound(part: Part, model: Model) -> Iterator[Problem]:
    """Yield what stands in the way of another depth or order of layers."""
    names = [name for name in model.tensors if _BOUND.search(name)]
    if part.stack is None or not names or not part.scopes[0].sliced:
        return
    ranges = [scope.entries[0].layer_range or (0, 0) for scope in part.scopes]
    order = [layer for first, end in ranges for layer in range(first, end)]
    inside = [n for n in names if part.module is None or n.startswith(part.prefix)]
    if inside and order != list(range(stacks_of(model.tensors)[part.stack])):
        where = "slices" if part.module is None else f"modules.{part.module}"
        yield Problem(
            f"{inside[0]} of '{model.label}' belongs to the number and order of all layers",
            where,
            part.scopes[0].location,
            "take all layers in their order; such a model cannot be made deeper or shallower",
        )


def part_of(name: str, place: Place, parts: Sequence[Part], stacks: Sequence[str]) -> Part | None:
    """Return the part that a tensor belongs to, or None where no module names it.

    A layer belongs to its stack's part. A tensor outside goes by a part's name in its own, or to
    the stack with the longest common start, or to the main part where several have it.
    """
    by_stack = {part.stack: part for part in parts if part.stack is not None}
    if place.stack in by_stack:
        return by_stack[place.stack]
    named = next((part for part in parts if part.stack is None and part.names(name)), None)
    if named is not None or (len(parts) == 1 and parts[0].module is None):
        return named or parts[0]
    if place.stack is not None:
        inside = [part for part in by_stack.values() if _inside(name, part.prefix)]
        return max(inside, key=lambda part: len(part.prefix), default=None)
    shared = {stack: _shared(name, stack) for stack in stacks}
    most = max(shared.values(), default=0)
    nearest = [stack for stack in stacks if shared[stack] == most]
    main = [part for part in by_stack.values() if part.stack in nearest]
    return next((p for p in main if _is_main(p.stack)), main[-1] if main else None)


def _inside(name: str, prefix: str) -> bool:
    return prefix != "." and name.startswith(prefix)


def _is_main(stack: str | None) -> bool:
    return bool(stack) and not re.search(r"vision|visual|vit|audio|encoder", str(stack))


def _shared(first: str, second: str) -> int:
    """Return how many parts two names have in common from the start."""
    count = 0
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count
