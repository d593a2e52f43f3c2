"""Which tokenizer, tokens and chat template does a recipe ask for? `tokenizer` and its short form.

Names of chat templates are checked here, and that models are those of the recipe; what depends on
the models' tokens is said when the plan is made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from mergeconf.errors import did_you_mean
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import ModelRef, TokenEntry, TokenizerChoice, TokenSource
from mergeconf.recipe.references import parse_model
from mergeconf.recipe.schema import TokenOfModel, ZeroToken
from mergeconf.recipe.words import describe
from mergeconf.recipe.yaml_source import Path

_KINDS = ("model_token", "zero")
_PREFIX = "model:"
"""How mergekit's first recipes began the name of a model whose tokenizer they take."""


def parse_tokenizer(
    data: Mapping[str, Any], models: Sequence[ModelRef], collector: Collector
) -> TokenizerChoice | None:
    """Return what a recipe says of the tokenizer, or None where it says nothing.

    Args:
        data: The recipe.
        models: All models that it names, the base first.
        collector: Takes the problems.
    """
    short, section = data.get("tokenizer_source"), data.get("tokenizer")
    if section is None and short is None:
        return None
    path: Path = ("tokenizer_source",) if section is None else ("tokenizer", "source")
    if not isinstance(section, Mapping):
        section = {"source": short}
    given = section.get("source")
    source = _source(given if given is not None else "union", path, models, collector)
    listed = section.get("tokens")
    tokens = []
    for token, entry in listed.items() if isinstance(listed, Mapping) else ():
        here: Path = ("tokenizer", "tokens", token)
        tokens.append(_token(str(token), entry, here, models, collector))
    multiple = section.get("pad_to_multiple_of")
    sound = isinstance(multiple, int) and not isinstance(multiple, bool) and multiple > 0
    return TokenizerChoice(
        source=source,
        tokens=tuple(tokens),
        pad_to_multiple_of=multiple if sound else None,
        path=path,
        location=collector.source.locate(path),
    )


def _source(
    given: object, path: Path, models: Sequence[ModelRef], collector: Collector
) -> Literal["union", "base"] | ModelRef:
    if given in ("union", "base"):
        return given
    if isinstance(given, str) and given.startswith(_PREFIX):
        given = given.removeprefix(_PREFIX)
    found = parse_model(given, path, collector)
    if found is None:
        return "union"  # a problem was noted
    return next((model for model in models if model.key == found.key), found)


def _token(
    token: str, entry: object, path: Path, models: Sequence[ModelRef], collector: Collector
) -> TokenEntry:
    entry = entry if isinstance(entry, Mapping) else {}
    given = entry.get("source")
    source = None if given is None else _kind(given, (*path, "source"), models, collector)
    location = collector.source.locate(path)
    return TokenEntry(token, source, entry.get("force") is True, path, location)


def _kind(
    given: object, path: Path, models: Sequence[ModelRef], collector: Collector
) -> TokenSource | None:
    if not isinstance(given, Mapping) or "kind" not in given:
        model = _known(given, path, models, collector)
        return None if model is None else TokenSource("model", model)
    kind = given["kind"]
    if kind not in _KINDS:
        hint = did_you_mean(kind, _KINDS) if isinstance(kind, str) else "model_token or zero"
        collector.error((*path, "kind"), f"unknown kind {describe(kind)}", hint)
        return None
    valid: Collection[str] = (ZeroToken if kind == "zero" else TokenOfModel).model_fields
    for key in given:
        if key not in valid:
            collector.unknown_key((*path, key), valid)
    if kind == "zero":
        return TokenSource("zero")
    return _model_token(given, path, models, collector)


def _model_token(
    given: Mapping[str, Any], path: Path, models: Sequence[ModelRef], collector: Collector
) -> TokenSource | None:
    if given.get("model") is None:
        collector.error(path, "a model_token needs the 'model' that it is taken from")
        return None
    model = _known(given["model"], (*path, "model"), models, collector)
    token, number = given.get("token"), given.get("token_id")
    if (token is None) == (number is None):
        said = "neither is given" if token is None else "both are given"
        collector.error(path, f"a model_token needs either 'token' or 'token_id'; {said}")
    elif token is not None and not isinstance(token, str):
        collector.error(
            (*path, "token"), f"expected text, found {describe(token)}", "put it in quotes"
        )
    elif number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        collector.error((*path, "token_id"), f"expected a whole number, found {describe(number)}")
    elif number is not None and number < 0:
        collector.error((*path, "token_id"), f"expected 0 or more, found {number}")
    elif model is not None:
        return TokenSource("token", model, token, number)
    return None


def _known(
    given: object, path: Path, models: Sequence[ModelRef], collector: Collector
) -> ModelRef | None:
    """Return the model of the recipe that is meant, or None where a problem was noted."""
    found = parse_model(given, path, collector)
    if found is None:
        return None
    for model in models:
        if model.key == found.key:
            return model
    hint = did_you_mean(str(found), [str(model) for model in models])
    collector.error(path, f"'{found}' is no model of this recipe", hint)
    return None


def parse_chat_template(data: Mapping[str, Any], collector: Collector) -> str | None:
    """Return the chat template that a recipe names or writes out."""
    given = data.get("chat_template")
    if not isinstance(given, str):
        return None
    # here, because it takes numpy with it, which recipes without a template do without
    from mergeconf.checkpoint.chat_templates import TEMPLATES, flaw_of

    if given in TEMPLATES or given == "auto":
        return given
    if "{" in given:
        if flaw := flaw_of(given):
            collector.error(("chat_template",), f"is no sound Jinja template: {flaw}")
        return given
    hint = did_you_mean(given, [*TEMPLATES, "auto"])
    if not hint.startswith("did"):
        hint += "; or the template itself, which has {{ }} in it"
    collector.error(("chat_template",), f"unknown chat template '{given}'", hint)
    return None
