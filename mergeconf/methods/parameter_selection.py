"""Parameter selection with resampling: the method that mergeconf exists for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergeconf.graph import ops
from mergeconf.methods.registry import Bounds, PerModel, merge_method

STREAM = "parameter_selection"


@merge_method(
    base="optional",
    copies=True,
    source="arXiv:2410.03743",
    laws={"identity", "base_identity", "copies_elements", "between"},
)
def parameter_selection(
    base: Any,
    *models: Any,
    weight: Annotated[PerModel, Bounds(0)] = (1.0,),
    resample: Annotated[int | Literal["all"], Bounds(0, 64)] = "all",
) -> Any:
    """Take each parameter from one randomly chosen model; where it equals the base's, draw again.

    For models that were fine-tuned from one base on the same data in different orders. Every
    scalar parameter is taken from model i with probability w_i / Σw, independently of all others,
    and copied bit for bit. Where the chosen value equals the base's, that model has learned
    nothing there, and the draw is repeated, up to `resample` times: the base's value is kept with
    probability (1 − q)^(resample + 1), q being the share of the models that changed it.
    `resample: all` is the limit of that: a draw among the models that changed the parameter, in
    proportion to their weights, and the base's value only where none did. `resample: 0` never
    draws again and needs no base.

    Ju et al., 2024, "Mitigating training imbalance in LLM fine-tuning via selective parameter
    merging" (arXiv:2410.03743). The paper's number of repetitions is not known to us; `all` as
    the default is our choice. −0 counts as equal to +0. Where base and model are stored in
    different formats they are compared in the narrower one.

    Raises:
        ValueError: `resample` is not 0 and there is no base; or all weights are 0.
    """
    if resample == 0:
        return ops.pick(models, weight, STREAM)
    if base is None:
        raise ValueError("resampling compares with the base model: set base_model, or resample: 0")
    changed = [ops.differs(model, base) for model in models]
    if resample == "all":
        result = ops.pick(models, weight, STREAM, eligible=changed, otherwise=base)
    else:
        result = base
        # The first draw that met a changed value counts, so it is applied last.
        for draw in reversed(range(int(resample) + 1)):
            drawn = ops.pick(models, weight, STREAM, draw)
            result = ops.choose(ops.differs(drawn, base), drawn, result)
    return _observed(result, changed)


def _observed(result: Any, changed: list[Any]) -> Any:
    """Let the run count how many values equal the base's."""
    somewhere = changed[0]
    for mask in changed[1:]:
        somewhere = ops.either(somewhere, mask)
    counts = {f"changed:{index}": mask for index, mask in enumerate(changed)}
    return ops.observe(result, **counts, changed_somewhere=somewhere)
