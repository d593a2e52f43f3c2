"""From a file, text or mapping to a checked `Recipe`, or to every problem that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mergeconf.codes import WARNINGS
from mergeconf.errors import Problem, RecipeError, did_you_mean
from mergeconf.methods import Method, all_methods
from mergeconf.recipe.checks import check_models, check_parameters, uses_of
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.merges import Around, Loading, Merges
from mergeconf.recipe.model import DEFAULT_SHARD_SIZE, ModelRef, Recipe, Rule, Scope
from mergeconf.recipe.named_merges import define_merges, load_unused, name_documents, result_of
from mergeconf.recipe.parse_values import parse_matcher, parse_parameters
from mergeconf.recipe.read import read_source
from mergeconf.recipe.references import parse_model
from mergeconf.recipe.schema import parse_dtype
from mergeconf.recipe.scopes import parse_scopes
from mergeconf.recipe.structure import check_structure
from mergeconf.recipe.tokenizer import parse_chat_template, parse_tokenizer
from mergeconf.recipe.words import BadValue, describe
from mergeconf.recipe.yaml_source import Path as KeyPath
from mergeconf.recipe.yaml_source import Source, read_documents
from mergeconf.units import parse_size

_T = TypeVar("_T")


def load_recipe(
    source: str | Path | Mapping[str, Any], *, methods: Mapping[str, Method] | None = None
) -> Recipe:
    """Return a recipe, checked as far as that is possible without looking at models.

    Args:
        source: Path of a file; or text of YAML, told from a path by having a line break; or a
            mapping of plain data. Of several documents, that which is the result: the one without
            a name, or else the only one that no other uses.
        methods: Merge methods by name; all that are installed where left out.

    Raises:
        RecipeError: with every problem of the recipe, in the order of its text.
    """
    known = all_methods() if methods is None else methods
    documents, path = read_source(source)
    loading = Loading(partial(_load_part, methods=known), _load_file)
    if path is not None:
        loading.open.append((str(path.resolve()), str(source)))
    return _load_documents(documents, path, path.parent if path else Path(), loading)


def load_locked(text: str, folder: Path, files: Mapping[str, str]) -> Recipe:
    """Return a recipe that a lock holds.

    Args:
        text: The recipe.
        folder: Folder that its models are named from.
        files: Texts of the other recipes that it names, by their path from the folder; no file
            is read.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    texts = {str((folder / name).resolve()): content for name, content in files.items()}
    loading = Loading(partial(_load_part, methods=all_methods()), _load_file, texts)
    return _load_documents(read_documents(text, "<lock>"), None, folder, loading)


def _load_file(path: Path, loading: Loading) -> Recipe:
    if loading.texts is None:
        documents, _ = read_source(path)
    else:
        text = loading.texts.get(str(path.resolve()))
        if text is None:
            raise RecipeError(Problem("the lock does not hold this recipe", where=str(path)))
        documents = read_documents(text, str(path))
    return _load_documents(documents, path, path.parent, loading)


def _load_documents(
    documents: Sequence[Source], path: Path | None, folder: Path, loading: Loading
) -> Recipe:
    """Return the recipe of the document that is the result."""
    shared = Merges(loading, folder, Around())
    collectors = [Collector(document) for document in documents]
    for collector in collectors:
        collector.errors, collector.warnings = collectors[0].errors, collectors[0].warnings
    named = name_documents(collectors)
    recipes: dict[int, Recipe] = {}

    def load(index: int) -> Recipe:
        if index not in recipes:
            merges = Merges(loading, shared.folder, Around(), shared)
            recipes[index] = _load_document(collectors[index], merges, path)
        return recipes[index]

    for name, index in named.items():
        shared.define(name, partial(load, index))
    for index, collector in enumerate(collectors):
        names = [name for name, other in named.items() if other == index]
        if names:
            shared.load(names[0], ("name",), collector)
        else:
            load(index)
    chosen = result_of(collectors, named, shared.used)
    collectors[0].raise_errors()
    recipe = recipes[chosen]
    warnings = (w for w in collectors[0].warnings if w.code not in recipe.silenced)
    return replace(recipe, warnings=tuple(warnings))


def _load_document(collector: Collector, merges: Merges, path: Path | None) -> Recipe:
    read = collector.source
    if not isinstance(read.data, dict):
        found = "nothing" if read.data is None else describe(read.data)
        raise RecipeError(
            Problem(
                f"a recipe is a mapping of keys such as merge_method and models, found {found}",
                location=read.locate(()),
            )
        )
    return merges.loading.load_part(collector, merges, path)


def _load_part(
    collector: Collector, merges: Merges, path: Path | None, methods: Mapping[str, Method]
) -> Recipe:
    """Return the recipe that a collector's data says; what is wrong is noted."""
    data = collector.source.data
    collector.merges = merges
    check_structure(data, {n for m in methods.values() for n in m.parameters}, collector)
    loader = _Loader(data, methods, collector)
    define_merges(data, merges, collector, loader.seed, loader.dtype)
    recipe = loader.load(path)
    _check(recipe, methods, collector)
    load_unused(data, merges, collector)
    return recipe


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
    for index, code in enumerate(data["silence"] if recipe.silenced else ()):
        if isinstance(code, str) and code not in WARNINGS:
            meant = did_you_mean(code, WARNINGS)
            hint = meant if meant.startswith("did") else "mergeconf check --codes lists them"
            message = f"there is no warning '{code}'"
            collector.warn("unknown-code", ("silence", index), message, hint)


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
        around = collector.merges.around
        self.dtype: str | None = _sound(parse_dtype, data.get("dtype"))
        if data.get("dtype") is None and data.get("out_dtype") is None:
            self.dtype = around.dtype
        self.seed: tuple[int, str] = (around.seed, around.seed_scope)
        if isinstance(data.get("seed"), int):
            self.seed = (data["seed"], "")

    def load(self, path: Path | None) -> Recipe:
        data, read = self.data, self.collector.source
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
            folder=self.collector.merges.folder,
            name=_first_text(
                data.get("name"), metadata.get("name"), path.stem if path else None, "merge"
            ),
            method=method,
            take=take,
            base_model=self.base,
            scopes=self.scopes,
            parameters=parse_parameters(data.get("parameters"), ("parameters",), self.collector),
            rules=self._rules(method),
            seed=self.seed[0],
            seed_scope=self.seed[1],
            dtype=self.dtype,
            out_dtype=_sound(parse_dtype, data.get("out_dtype")),
            shard_size=_sound(parse_size, output.get("shard_size")) or DEFAULT_SHARD_SIZE,
            metadata=metadata,
            warnings=(),
            silenced=frozenset(code for code in silence if isinstance(code, str)),
            tokenizer=parse_tokenizer(data, self._models(), self.collector),
            chat_template=parse_chat_template(data, self.collector),
            locations={
                str(key[0]): location for key, location in read.values.items() if len(key) == 1
            },
        )

    def _models(self) -> list[ModelRef]:
        """Return all models that the recipe names, the base first."""
        entries = [entry.model for scope in self.scopes for entry in scope.entries]
        found = [self.base, *entries, *(scope.base_model for scope in self.scopes)]
        return list({model.key: model for model in found if model is not None}.values())

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
        wanted = (ModelRef(name).key, f"merge {name}")
        entries = [entry for scope in self.scopes for entry in scope.entries]
        bases = (self.base, *(scope.base_model for scope in self.scopes))
        for model in (*(entry.model for entry in entries), *bases):
            if model is not None and model.key in wanted:
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
