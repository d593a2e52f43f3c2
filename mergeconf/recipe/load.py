"""From a file, text or mapping to a checked `Recipe`, or to every problem that it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mergeconf.errors import Problem, RecipeError, did_you_mean
from mergeconf.methods import Method, all_methods
from mergeconf.recipe.checks import check_models, check_parameters, uses_of
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import DEFAULT_SHARD_SIZE, ModelRef, Recipe, Rule, Scope
from mergeconf.recipe.not_yet import refuse_unsupported
from mergeconf.recipe.parse_values import parse_matcher, parse_parameters
from mergeconf.recipe.references import parse_model
from mergeconf.recipe.schema import parse_dtype
from mergeconf.recipe.scopes import parse_scopes
from mergeconf.recipe.structure import check_structure
from mergeconf.recipe.words import BadValue, describe, show
from mergeconf.recipe.yaml_scalars import write_yaml
from mergeconf.recipe.yaml_source import MOST_BYTES, Source, read_yaml
from mergeconf.recipe.yaml_source import Path as KeyPath
from mergeconf.units import parse_size

_T = TypeVar("_T")


def load_recipe(
    source: str | Path | Mapping[str, Any], *, methods: Mapping[str, Method] | None = None
) -> Recipe:
    """Return a recipe, checked as far as that is possible without looking at models.

    Args:
        source: Path of a file; or text of YAML, told from a path by having a line break; or a
            mapping of plain data.
        methods: Merge methods by name; all that are installed where left out.

    Raises:
        RecipeError: with every problem of the recipe, in the order of its text.
    """
    known = all_methods() if methods is None else methods
    read, path = _read(source)
    if not isinstance(read.data, dict):
        found = "nothing" if read.data is None else describe(read.data)
        raise RecipeError(
            Problem(
                f"a recipe is a mapping of keys such as merge_method and models, found {found}",
                location=read.locate(()),
            )
        )
    collector = Collector(read)
    check_structure(read.data, {n for m in known.values() for n in m.parameters}, collector)
    refuse_unsupported(read.data, collector)
    recipe = _Loader(read.data, known, collector).load(read, path)
    _check(recipe, known, collector)
    collector.raise_errors()
    warnings = (w for w in collector.warnings if w.code not in recipe.silenced)
    return replace(recipe, warnings=tuple(warnings))


def _check(recipe: Recipe, methods: Mapping[str, Method], collector: Collector) -> None:
    data = collector.source.data
    uses = uses_of(recipe, methods)
    check_models(recipe, uses, collector)
    named = [recipe.method, *(rule.method for rule in recipe.rules)]
    all_known = all(name is None or name in methods for name in named) and (
        recipe.method is not None or recipe.take is not None
    )
    check_parameters(recipe, uses, methods, all_known, collector)
    of_base = data.get("tokenizer_source") == "base" or (
        isinstance(data.get("tokenizer"), dict) and data["tokenizer"].get("source") == "base"
    )
    both = collector.given("tokenizer") and collector.given("tokenizer_source")
    if both:
        collector.error(
            ("tokenizer_source",), "given beside 'tokenizer'", "keep one of them", key=True
        )
    if of_base and not collector.given("base_model"):
        key = "tokenizer" if collector.given("tokenizer") else "tokenizer_source"
        collector.error((key,), "takes the base's tokenizer, but there is no 'base_model'")


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Source, Path | None]:
    if isinstance(source, Mapping):
        text = write_yaml(_plain(source, "", 0))
        read = read_yaml(text, "")
        return replace(read, keys={}, values={}), None  # nobody has seen that text
    if isinstance(source, str) and re.search(r"[\r\n]", source):
        return read_yaml(source, "<recipe>"), None
    path = Path(source)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(Problem("no such file", where=str(source))) from None
    except IsADirectoryError:
        raise RecipeError(
            Problem("a folder, not a recipe", str(source), hint="name the recipe's file")
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(Problem(f"cannot be read: {reason}", where=str(source))) from None
    return read_yaml(raw, str(source)), path


def _plain(data: object, where: str, depth: int) -> Any:
    """Return data as YAML can hold it: tuples as lists, paths and keys as text."""
    if depth > 60:
        raise RecipeError(Problem("nested too deep, or inside itself", where=where))
    prefix = f"{where}." if where else ""
    if isinstance(data, Mapping):
        items = data.items()
        return {str(key): _plain(item, f"{prefix}{key}", depth + 1) for key, item in items}
    if isinstance(data, (list, tuple)):
        return [_plain(item, f"{prefix}{i}", depth + 1) for i, item in enumerate(data)]
    if isinstance(data, int) and data.bit_length() > 4096:
        raise RecipeError(Problem(f"{show(data)} is too large", where=where))
    for kind in (bool, int, float, str):
        if isinstance(data, kind):
            return kind(data)
    if data is None or isinstance(data, Path):
        return None if data is None else str(data)
    raise RecipeError(Problem(f"a recipe cannot hold a {type(data).__name__}", where=where))


class _Loader:
    """Builds the loaded form part by part; what is not sound is noted and left out."""

    def __init__(
        self, data: Mapping[str, Any], methods: Mapping[str, Method], collector: Collector
    ) -> None:
        self.data = data
        self.methods = methods
        self.collector = collector
        self.base: ModelRef | None = None
        self.scopes: tuple[Scope, ...] = ()

    def load(self, read: Source, path: Path | None) -> Recipe:
        data = self.data
        if data.get("base_model") is not None:
            self.base = parse_model(data["base_model"], ("base_model",), self.collector)
        self.scopes = parse_scopes(data, self.base, self.collector)
        method = self._method(("merge_method",), data.get("merge_method"))
        take = self._take(("take",), data.get("take"))
        self._one_action()
        metadata = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
        output = data.get("output") if isinstance(data.get("output"), dict) else {}
        silence = data.get("silence") if isinstance(data.get("silence"), list) else []
        assert metadata is not None and output is not None and silence is not None
        return Recipe(
            text=read.text,
            path=path,
            folder=path.parent if path else Path(),
            name=_first_text(
                data.get("name"), metadata.get("name"), path.stem if path else None, "merge"
            ),
            method=method,
            take=take,
            base_model=self.base,
            scopes=self.scopes,
            parameters=parse_parameters(data.get("parameters"), ("parameters",), self.collector),
            rules=self._rules(method),
            seed=data["seed"] if isinstance(data.get("seed"), int) else 0,
            seed_scope="",
            dtype=_sound(parse_dtype, data.get("dtype")),
            out_dtype=_sound(parse_dtype, data.get("out_dtype")),
            shard_size=_sound(parse_size, output.get("shard_size")) or DEFAULT_SHARD_SIZE,
            metadata=metadata,
            warnings=(),
            silenced=frozenset(code for code in silence if isinstance(code, str)),
            locations={
                str(key[0]): location for key, location in read.values.items() if len(key) == 1
            },
        )

    def _method(self, path: KeyPath, name: object) -> str | None:
        if not isinstance(name, str):
            return None
        if name not in self.methods:
            hint = did_you_mean(name, self.methods)
            self.collector.error(path, f"unknown merge method '{name}'", hint)
        return name

    def _one_action(self) -> None:
        given = self.collector.given
        if given("merge_method") and given("take"):
            self.collector.error(
                ("take",), "given beside 'merge_method'", "keep one of them", key=True
            )
        elif not {"merge_method", "take"} & (self.collector.meant | self.data.keys()):
            self.collector.error(
                ("merge_method",),
                "missing",
                f"one of {', '.join(self.methods)}; or 'take: base_model'",
            )

    def _take(self, path: KeyPath, name: object) -> ModelRef | None:
        if not isinstance(name, str):
            return None
        if name == "base_model":
            if self.base is None and not self.collector.given("base_model"):
                hint = "set base_model"
                self.collector.error(path, "the recipe has no 'base_model' to take from", hint)
            return self.base
        wanted = ModelRef(name).key
        entries = [entry for scope in self.scopes for entry in scope.entries]
        bases = (self.base, *(scope.base_model for scope in self.scopes))
        for model in (*(entry.model for entry in entries), *bases):
            if model is not None and wanted == model.key:
                return model
        valid = ["base_model", *(str(entry.model) for entry in entries)]
        self.collector.error(
            path, f"'{name}' is no model of this recipe", did_you_mean(name, valid)
        )
        return None

    def _rules(self, method: str | None) -> tuple[Rule, ...]:
        listed = self.data.get("rules")
        items: Sequence[object] = listed if isinstance(listed, list) else []
        rules = []
        for index, item in enumerate(items):
            if isinstance(item, dict):
                rules.append(self._rule(index, item, method))
        return tuple(rules)

    def _rule(self, index: int, item: Mapping[str, Any], method: str | None) -> Rule:
        path: KeyPath = ("rules", index)
        aimed = item.get("match") is not None or item.get("layers") is not None
        if not aimed and not {"match", "layers"} & self.collector.meant:
            hint = 'match: "*" fits all'
            self.collector.error(path, "fits no tensor: needs 'match' or 'layers'", hint)
        parameters = parse_parameters(
            item.get("parameters"), (*path, "parameters"), self.collector
        )  # fmt: skip
        own = self._method((*path, "merge_method"), item.get("merge_method"))
        take = self._take((*path, "take"), item.get("take"))
        if not self._rule_action(path, item, method) and parameters:
            own = method
        matcher = parse_matcher({**item, "filter": None}, path, self.collector)
        location = self.collector.source.locate(path)
        drop = item.get("drop") is True
        return Rule(index, matcher, own, take, drop, parameters, location)

    def _rule_action(self, path: KeyPath, item: Mapping[str, Any], method: str | None) -> bool:
        """Note what is wrong with what a rule does; tell whether it says what it does."""
        given = [key for key in ("merge_method", "take", "drop") if item.get(key) is not None]
        error = self.collector.error
        if item.get("drop") is False:
            error((*path, "drop"), "false has no meaning", "write true, or leave it out")
        if len(given) > 1:
            names = f"'{given[0]}' and '{given[1]}'"
            error((*path, given[1]), f"{names} in one rule", "keep one of them", key=True)
        elif not given and not item.get("parameters"):
            if not {"merge_method", "take", "drop"} & self.collector.meant:
                error(path, "does nothing: needs 'merge_method', 'take' or 'drop'")
        elif not given and method is None and self.collector.given("take"):
            hint = "give the rule a merge_method"
            error((*path, "parameters"), "the recipe has no merge_method to set them for", hint)
        elif given and given[0] != "merge_method" and item.get("parameters"):
            error((*path, "parameters"), f"have no effect beside '{given[0]}'", key=True)
        return bool(given)


def _sound(parse: Callable[[Any], _T], data: object) -> _T | None:
    """Return what `parse` makes of data, or None where the structure's check has refused it."""
    try:
        return None if data is None else parse(data)
    except (BadValue, ValueError):
        return None


def _first_text(*candidates: object) -> str:
    return next(name for name in candidates if isinstance(name, str) and name)
