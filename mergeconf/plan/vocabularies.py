"""What becomes of embeddings and heads where the recipe has a `tokenizer`, and of the tokenizer?

The models' tensors with one row a token become tensors over the output's tokens, computed row by
row; then they are merged like all others. Without a `tokenizer` section nothing is done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from mergeconf.checkpoint.tokenizer_files import changed_files
from mergeconf.checkpoint.vocabulary_files import Files
from mergeconf.errors import Problem, did_you_mean
from mergeconf.graph.gather import CannotGather
from mergeconf.graph.nodes import Node
from mergeconf.plan.alignment import Alignment
from mergeconf.plan.embeddings import Layout, compacted, embedding_over
from mergeconf.plan.output_vocabulary import (
    OutputVocabulary,
    RowArray,
    Wish,
    fill,
    is_own_order,
    output_vocabulary,
    row_map,
)
from mergeconf.plan.read_vocabularies import (
    Known,
    has_row_a_token,
    other_sizes,
    other_tables,
    read_known,
)
from mergeconf.plan.sources import Bound, Derived, Model, Source, written_dtype
from mergeconf.recipe import Recipe, TokenEntry, TokenizerChoice
from mergeconf.recipe.model import KeyPath

_BYTES_PER_TOKEN = 200
"""Held for each token of each vocabulary while a plan is made, in bytes (measured: 100 to 150)."""
_BYTES_PER_ADDED_TOKEN = 1000
"""Held besides for each token that is added to a tokenizer, in bytes (measured: 700 to 800)."""


@dataclass(frozen=True, slots=True)
class OutputTokenizer:
    """The tokenizer of the output."""

    files: Mapping[str, bytes]
    """Its files that are written anew."""
    taken: Files
    """Files of the model whose tokenizer is taken."""
    ids: Mapping[str, int]
    rows: int
    """Rows of the output's embeddings."""
    model: Model | None
    """The model whose tokenizer is taken, None for one that is not merged."""
    donor_ids: Mapping[str, int]
    """Tokens of the model that gives the config."""
    donor_rows: int
    """Rows of that model's embeddings."""
    peak_bytes: int
    """Most bytes that putting it together takes."""
    keeps_ids: bool
    """Whether that model's tokens keep their ids."""


def over_output_tokens(
    recipe: Recipe, models: Mapping[str, Model], alignment: Alignment
) -> tuple[Alignment, OutputTokenizer | None, list[Problem]]:
    """Return the alignment with embeddings and heads over the output's tokens, the tokenizer, and
    problems.

    Raises:
        CheckpointError: a tokenizer is missing, damaged or not understood.
        PlanError: the tokens cannot be put together.
    """
    choice = recipe.tokenizer
    if choice is None:
        return alignment, None, []
    known, problems = read_known(recipe, choice, models)
    taken, first = known.taken, next(iter(models))
    others = [(known.vocabularies[k], known.tokens[k]) for k in models if k != first]
    output = output_vocabulary(
        taken.vocabulary,
        taken.rows,
        others if choice.source == "union" else [],
        [entry.token for entry in choice.tokens],
        choice.pad_to_multiple_of,
    )
    problems.extend(_misfit_tokens(choice, known, models))
    tokenizer = OutputTokenizer(
        files=changed_files(
            taken.files, taken.vocabulary, output.ids, output.added, output.removed
        ),
        taken=taken.files,
        ids=output.ids,
        rows=output.rows,
        model=None if taken.key is None else models[taken.key],
        donor_ids=known.tokens[first].ids,
        donor_rows=known.tokens[first].rows,
        peak_bytes=_BYTES_PER_TOKEN * (known.count + len(output.ids))
        + _BYTES_PER_ADDED_TOKEN * len(output.added),
        keeps_ids=taken.key == first,
    )
    if any(problem.severity == "error" for problem in problems):
        return alignment, tokenizer, problems
    builder = _Builder(recipe, choice, known, output, models)
    sources = {name: builder.sources_of(name, alignment) for name in alignment.names}
    problems.extend(builder.problems)
    return replace(alignment, sources=sources), tokenizer, problems


# --- what the recipe says of tokens ---------------------------------------------------------------


def _misfit_tokens(
    choice: TokenizerChoice, known: Known, models: Mapping[str, Model]
) -> Iterator[Problem]:
    """Yield what the recipe says of tokens that no model can fulfil, or that has no effect."""
    for entry in choice.tokens:
        lacking = [t.label for t in known.tokens.values() if entry.token not in t.ids]
        where, source = _dotted(entry.path), entry.source
        if not lacking and not entry.force:
            yield Problem(
                "all models have this token: what is said of it has no effect",
                where,
                entry.location,
                "force: true gives it to all models",
                severity="warning",
                code="token-no-effect",
            )
        elif source is None:
            reason = f"'{lacking[0]}' lacks this token" if lacking else "'force' is true"
            hint = "for example source: {kind: zero}, or a model that has the token"
            yield Problem(f"needs a 'source': {reason}", where, entry.location, hint)
        elif source.model is not None:
            problem = _lacks(entry, known, models[source.model.key])
            if problem is not None:
                yield problem


def _lacks(entry: TokenEntry, known: Known, model: Model) -> Problem | None:
    source = entry.source
    assert source is not None and source.model is not None
    tokens, where = known.tokens[source.model.key], _dotted(entry.path)
    if source.token_id is not None:
        if source.token_id < tokens.rows:
            return None
        message = f"token_id {source.token_id} is out of range"
        hint = f"the embedding of '{model.label}' has rows 0 to {tokens.rows - 1}"
        return Problem(message, f"{where}.source.token_id", entry.location, hint)
    wanted = entry.token if source.token is None else source.token
    if wanted in tokens.ids:
        return None
    near = [token for token in known.vocabularies[source.model.key].added if token in tokens.ids]
    hint = did_you_mean(wanted, near)
    if not hint.startswith("did"):
        hint = "give a token that it has: source: {kind: model_token, model: ..., token: ...}"
    return Problem(
        f"'{model.label}' has no token {wanted!r}", f"{where}.source", entry.location, hint
    )


# --- embeddings over the output's tokens --------------------------------------------------------


@dataclass(slots=True)
class _Builder:
    """Makes each different expression once."""

    recipe: Recipe
    choice: TokenizerChoice
    known: Known
    output: OutputVocabulary
    models: Mapping[str, Model]
    problems: list[Problem] = field(default_factory=list)
    _keys: dict[str, str] = field(default_factory=dict)
    _maps: dict[str, RowArray] = field(default_factory=dict)
    _layouts: dict[tuple[str | None, ...], Layout | None] = field(default_factory=dict)
    _made: dict[object, tuple[Node, tuple[int, ...]]] = field(default_factory=dict)
    _sizes: dict[str, frozenset[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_tokens: dict[tuple[int, int], RowArray] = {}
        for key, model in self.models.items():
            self._keys[model.label] = key
            self._sizes[model.label] = other_sizes(model.config)
            tokens = self.known.tokens[key]
            same = id(self.known.vocabularies[key]), tokens.rows
            if same not in by_tokens:
                by_tokens[same] = row_map(self.output, tokens)
            self._maps[model.label] = by_tokens[same]
        if not all(self._keeps(label) for label in self._maps):
            self.problems.extend(
                Problem(
                    f"{name} has rows for tokens of a number of its own, which cannot be aligned",
                    where=model.label,
                    hint="leave 'tokenizer' out, if the models' tokenizers are the same",
                )
                for model, name in other_tables(self.models.values())
            )

    def sources_of(self, name: str, alignment: Alignment) -> dict[str, Source]:
        """Return a tensor of the models over the output's tokens, unchanged if it has no rows for
        tokens."""
        sources = alignment.sources[name]
        in_layer = alignment.places[name].layer is not None
        if not all(
            has_row_a_token(name, source, self._rows(label), self._sizes[label], in_layer=in_layer)
            for label, source in sources.items()
        ):
            return sources
        donors, base = self._participants(name, alignment, sources)
        layout = self._layout(name, donors, base)
        if layout is None:
            return sources
        labels = list(dict.fromkeys([*donors, *sources]))
        bound = Bound.of([sources[label] for label in labels], labels)
        found = dict(sources)
        for label in sources:
            if self._keeps(label) and not layout.fill.forced.any():
                continue
            derived = self._derived(name, label, labels, sources, bound, layout, len(donors))
            if derived is not None:
                found[label] = derived
        return found

    def _rows(self, label: str) -> int:
        return self.known.tokens[self._keys[label]].rows

    def _keeps(self, label: str) -> bool:
        """Tell whether a model's embedding has the output's rows already, in the same order."""
        rows = self._rows(label)
        return rows == self.output.rows and is_own_order(self._maps[label], rows)

    def _participants(
        self, name: str, alignment: Alignment, sources: Mapping[str, Source]
    ) -> tuple[list[str], str | None]:
        """Return the models that a tensor is merged from, and the base among them."""
        index = alignment.scopes.get(name, 0)
        if index is None:
            return list(sources), None
        scope = self.recipe.scopes[index]
        listed = [entry.model for entry in scope.entries]
        if scope.base_model is not None:
            listed.append(scope.base_model)
        labels = dict.fromkeys(self.models[model.key].label for model in listed)
        base = None if scope.base_model is None else self.models[scope.base_model.key].label
        having = [label for label in labels if label in sources]
        return having or list(sources), base if base in sources else None

    def _layout(self, name: str, donors: Sequence[str], base: str | None) -> Layout | None:
        key = (*donors, base)
        if key not in self._layouts:
            self._layouts[key] = self._new_layout(name, donors, base)
        return self._layouts[key]

    def _new_layout(self, name: str, donors: Sequence[str], base: str | None) -> Layout | None:
        wishes = []
        for entry in self.choice.tokens:
            source = entry.source
            if source is None:  # all models have it
                continue
            model, row = None, source.token_id
            if source.model is not None:
                label = self.models[source.model.key].label
                if label not in donors:
                    self.problems.append(
                        Problem(
                            f"'{label}' has no part in {name}, and cannot give a token's embedding",
                            f"{_dotted(entry.path)}.source",
                            entry.location,
                        )
                    )
                    return None
                model = donors.index(label)
                if source.token is not None:
                    row = self.known.tokens[source.model.key].ids[source.token]
            wishes.append(Wish(entry.token, model, row, entry.force))
        maps = tuple(self._maps[label] for label in donors)
        position = None if base is None else donors.index(base)
        found = fill(maps, position, self.output, wishes)
        return Layout(maps, found, self.output.end, self.output.rows)

    def _derived(
        self,
        name: str,
        label: str,
        labels: Sequence[str],
        sources: Mapping[str, Source],
        bound: Bound,
        layout: Layout,
        donors: int,
    ) -> Derived | None:
        source = sources[label]
        rows = self._rows(label)
        shape = _reshaped(source.shape, rows, self.output.rows)
        width = max(1, prod(source.shape) // rows)
        key = (bound.key, id(layout), label, width)
        if key not in self._made:
            nodes = bound.nodes()
            own = nodes[labels.index(label)]
            try:
                root = embedding_over(nodes[:donors], own, self._maps[label], layout, width)
            except CannotGather as reason:
                self.problems.append(_computed_problem(name, label, str(reason)))
                return None
            self._made[key] = compacted(root, bound)
        expression, slots = self._made[key]
        return Derived(
            source.name,
            source.dtype,
            shape,
            expression,
            tuple(bound.inputs[slot] for slot in slots),
            tuple(bound.labels[slot] for slot in slots),
            written_as=written_dtype(source),
        )


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _reshaped(shape: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    return (new, *shape[1:]) if shape[0] == old else (*shape[:-1], new)


def _computed_problem(name: str, label: str, reason: str) -> Problem:
    return Problem(
        f"{name} {reason}, so that its rows cannot be taken one by one for another vocabulary",
        where=label,
        hint="run that merge first, and name its output folder here",
    )
