"""From a recipe and its models' headers to a plan: every output tensor gets its expression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergeconf.checkpoint import open_checkpoint
from mergeconf.dtypes import DType
from mergeconf.errors import PlanError, Problem, RecipeError
from mergeconf.graph.nodes import Agreed, Node
from mergeconf.graph.rewrite import interned
from mergeconf.methods import Method, all_methods
from mergeconf.methods.apply import as_output, trace
from mergeconf.plan.alignment import Alignment, align
from mergeconf.plan.assembly import assemble, left_out
from mergeconf.plan.data import Dropped, Plan, TensorPlan
from mergeconf.plan.depth import deepen
from mergeconf.plan.fit import Misfits
from mergeconf.plan.lint import CHECKS_OF_RESULT, lint
from mergeconf.plan.models import Library, OpenModel
from mergeconf.plan.output_files import output_files
from mergeconf.plan.sources import Bound, Model, Source, checkpoints_of, written_dtype
from mergeconf.plan.vocabularies import OutputTokenizer, over_output_tokens
from mergeconf.recipe import Decider, Decision, ModelRef, Recipe, check_names
from mergeconf.storage.layout import OutputTensor, plan_layout


def make_plan(recipe: Recipe, *, open_model: OpenModel = open_checkpoint) -> Plan:
    """Compile a recipe: read its models' headers, and say how each output tensor is made.

    Reads no weights.

    Args:
        recipe: The recipe.
        open_model: How to look at a model, for tests.

    Raises:
        CheckpointError: models are missing, damaged or not understood.
        PlanError: the models do not fit together, or the recipe does not fit them.
    """
    return lint(_make_plan(recipe, Library(open_model, _make_plan)), CHECKS_OF_RESULT)


def _make_plan(recipe: Recipe, library: Library) -> Plan:
    models = library.models_of(recipe)
    stored = align(list(models.values()))
    alignment, problems = assemble(recipe, models, stored)
    if problems:
        raise PlanError(problems)
    alignment, tokenizer, problems = over_output_tokens(recipe, models, alignment)
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise PlanError(dict.fromkeys(errors))
    decider = Decider(recipe)
    problems.extend(check_names(recipe, alignment.places, alignment.scopes))
    compiler = _Compiler(recipe, models, alignment)
    for name in alignment.names:
        try:
            scope = alignment.scopes.get(name, 0)
            decision = decider.decide(name, alignment.places[name], scope)
        except RecipeError as error:
            problems.extend(error.problems)
            continue
        if scope is None and decision.method is not None:
            compiler.misfits.nowhere(name)
            continue
        compiler.add(name, decision)
    problems.extend(compiler.finish())
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise PlanError(dict.fromkeys(errors))
    unused = left_out(recipe, models, stored, alignment, compiler.used, compiler.dropped)
    compiler.dropped.extend(unused)
    return lint(_assemble(recipe, alignment, tokenizer, compiler, problems))


def _assemble(
    recipe: Recipe,
    alignment: Alignment,
    tokenizer: OutputTokenizer | None,
    compiler: _Compiler,
    warnings: list[Problem],
) -> Plan:
    donor = alignment.models[0]
    config, notes = deepen(donor, alignment.depths)
    warnings.extend(notes)
    layout = plan_layout(
        [OutputTensor(plan.name, plan.dtype, plan.shape) for plan in compiler.tensors.values()],
        recipe.shard_size,
        stem=donor.file_stem,
    )
    found = [*recipe.warnings, *warnings]
    for model in alignment.models:
        found.extend(model.warnings)
    rules = Counter(
        plan.decision.rule for plan in compiler.tensors.values() if plan.decision is not None
    )
    rules.update(compiler.dropped_by_rule)
    unties = not alignment.untied.isdisjoint(compiler.tensors)
    files, config, notes = output_files(
        recipe, alignment.models, config, tokenizer, compiler.out_dtype, unties=unties
    )
    found.extend(notes)
    if errors := [problem for problem in notes if problem.severity == "error"]:
        raise PlanError(errors)
    return Plan(
        recipe=recipe,
        models=alignment.models,
        checkpoints=checkpoints_of(alignment.models),
        donor=donor,
        tensors=tuple(compiler.tensors[name] for name in layout.tensors),
        dropped=(*alignment.tied_copies, *compiler.dropped, *_set_aside(alignment.models)),
        layout=layout,
        sidecars=files,
        config=config,
        warnings=tuple(p for p in dict.fromkeys(found) if p.code not in recipe.silenced),
        rule_counts=tuple(rules[rule.index] for rule in recipe.rules),
        tokenizer_bytes=0 if tokenizer is None else tokenizer.peak_bytes,
    )


def _set_aside(models: Sequence[Model]) -> Iterator[Dropped]:
    """Yield what the models have stored beside their tensors."""
    labels: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for name, reason in model.aside.items():
            labels.setdefault((name, reason), []).append(model.label)
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # there may be as many as weights
    for (name, reason), having in labels.items():
        yield Dropped(name, shared.setdefault(tuple(having), tuple(having)), reason)


@dataclass(slots=True)
class _Compiler:
    """Makes expressions, each different one once, and collects what stands in the way."""

    recipe: Recipe
    models: Mapping[str, Model]
    alignment: Alignment
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    used: set[tuple[str, str]] = field(default_factory=set)
    """Label and name of the tensors that the output is made from."""
    dropped: list[Dropped] = field(default_factory=list)
    dropped_by_rule: Counter[int | None] = field(default_factory=Counter)
    misfits: Misfits = field(default_factory=Misfits)
    _problems: dict[Problem, None] = field(default_factory=dict)
    _traced: dict[object, Node | None] = field(default_factory=dict)
    _methods: Mapping[str, Method] = field(default_factory=all_methods)

    @property
    def out_dtype(self) -> DType | None:
        """Format that the recipe names for the output."""
        name = self.recipe.output_dtype
        return None if name is None else DType[name]

    def finish(self) -> list[Problem]:
        """Return all that stands in the way of a plan."""
        problems = [*self._problems, *self.misfits.problems(self.alignment, self.recipe)]
        if not problems and not self.tensors:
            problems.append(Problem("the output would hold no tensor at all"))
        return problems

    def add(self, name: str, decision: Decision) -> None:
        """Plan one tensor."""
        sources = self.alignment.sources[name]
        if decision.drop:
            reason = f"rules.{decision.rule}"
            self.dropped.append(Dropped(name, tuple(sources), reason))
            self.dropped_by_rule[decision.rule] += 1
            return
        references = self._references(decision)
        labels = tuple(self.models[reference.key].label for reference in references)
        missing = [label for label in labels if label not in sources]
        if missing:
            self.misfits.missing(name, missing)
            return
        given = tuple(sources[label] for label in labels)
        shapes = {tensor.shape for tensor in given}
        if len(shapes) > 1:
            self.misfits.shapes(name, labels, given)
            return
        plan = self._plan(name, decision, labels, given)
        if plan is not None:
            self.tensors[name] = plan
            self.used.update(zip(labels, (tensor.name for tensor in given), strict=True))

    def _references(self, decision: Decision) -> tuple[ModelRef, ...]:
        if decision.take is not None:
            return (decision.take,)
        base = () if decision.base is None else (decision.base,)
        return (*base, *decision.models)

    def _plan(
        self,
        name: str,
        decision: Decision,
        labels: tuple[str, ...],
        given: tuple[Source, ...],
    ) -> TensorPlan | None:
        first = given[0]
        dtypes = tuple(tensor.dtype for tensor in given)
        out_dtype = written_dtype(first)
        if first.dtype.is_float and self.out_dtype is not None:
            out_dtype = self.out_dtype
        if not all(dtype.is_float for dtype in dtypes) and (
            len(set(dtypes)) > 1 or not (first.dtype.is_integer or decision.take)
        ):
            self.misfits.format(name, labels, given)
            return None
        bound = Bound.of(given, labels)
        key: object = (decision, bound.key, first.shape, out_dtype)
        if key not in self._traced:
            self._traced[key] = self._expression(decision, bound.nodes(), first.shape, out_dtype)
        expression = self._traced[key]
        if expression is None:
            return None
        return TensorPlan(
            name, first.shape, out_dtype, expression, tuple(bound.inputs), tuple(bound.labels),
            decision, tuple(bound.origins),
        )  # fmt: skip

    def _expression(
        self,
        decision: Decision,
        nodes: Sequence[Node],
        shape: tuple[int, ...],
        out_dtype: DType,
    ) -> Node | None:
        if decision.take is not None:
            return as_output(nodes[0], out_dtype)
        if not out_dtype.is_float:
            return nodes[0] if len(nodes) == 1 else Agreed(tuple(nodes), out_dtype)
        assert decision.method is not None
        method = self._methods[decision.method]
        base = nodes[0] if decision.base is not None else None
        models = nodes[1:] if decision.base is not None else nodes
        parameters = {resolved.name: resolved.value for resolved in decision.parameters}
        try:
            return interned(trace(method, base, models, shape, parameters, out_dtype))
        except ValueError as error:
            where = "" if decision.rule is None else f"rules.{decision.rule}"
            problem = Problem(f"{method.name}: {error}", where, decision.location)
            self._problems[problem] = None
            return None
