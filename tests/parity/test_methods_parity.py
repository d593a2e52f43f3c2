"""Every method, computed by mergekit 0.1.5 and by mergeconf, tensor by tensor.

Skipped unless `MERGECONF_MERGEKIT` names mergekit's environment.

What is promised, and measured here, is in `PROMISES`. mergekit adds up norms, dot products and
weights in float32 in an order of its own; mergeconf reduces in float64. So methods that reduce
agree to a few times 1e-7 of the largest value in the tensor, and all others bit for bit, but for
two that round otherwise (see there).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from parity.compare import NONE, Distance, distance
from parity.method_cases import KINDS, RANDOM, SETTINGS, Case, all_cases
from parity.small_models import Tensors, family, write
from parity.ties import undecided

pytestmark = pytest.mark.parity

EXACT = Distance(1, 1.0, 1e-7)
"""At most one float32 step."""
DIVISOR = Distance(1 << 40, 1e9, 2e-7)
"""A divisor (a sum of weights, in float32) may be one step apart; then so are whole tensors."""
REDUCED = Distance(1 << 40, 1e9, 2e-6)
"""A factor comes from sums over the tensor."""
TIED = Distance(1 << 40, 1e9, 1e-2)
"""A factor comes from sums over what a choice among equal magnitudes has kept."""

PROMISES: dict[str, Distance] = {
    "passthrough": NONE,
    "nearswap": NONE,
    "ram": EXACT,
    "ramplus_tl": DIVISOR,  # the factor's last bit
    "linear": Distance(1 << 40, 1e9, 4e-7),  # mergekit multiplies and adds in one rounding
    "task_arithmetic": EXACT,
    "ties": EXACT,
    "dare_linear": EXACT,
    "dare_ties": EXACT,
    "breadcrumbs": EXACT,
    "breadcrumbs_ties": EXACT,
    "slerp": REDUCED,
    "nuslerp": Distance(1 << 40, 1e9, 1e-5),  # weights of unlike sign extrapolate
    "multislerp": REDUCED,
    "karcher": REDUCED,
    "model_stock": REDUCED,
    "sce": REDUCED,
    "della": EXACT,
    "della_linear": EXACT,
    "arcee_fusion": EXACT,
}


def promise(case: Case) -> Distance:
    """Return how far a result may be from mergekit's."""
    has_ties = case.kind != "plain"
    if case.method == "sce":
        return TIED if has_ties and case.shared.get("select_topk", 1.0) < 1 else REDUCED
    if case.shared.get("rescale") and "density" in case.each:
        return TIED if has_ties else REDUCED
    if case.shared.get("normalize") and PROMISES[case.method] is EXACT:
        return DIVISOR
    return PROMISES[case.method]


def mergekit_python() -> Path | None:
    """Return the python of the environment that holds mergekit, or None."""
    place = os.environ.get("MERGECONF_MERGEKIT")
    if not place:
        return None
    path = Path(place)
    for candidate in (path, path / "bin" / "python", path / "Scripts" / "python.exe"):
        if candidate.is_file():
            return candidate
    raise pytest.UsageError(f"MERGECONF_MERGEKIT is {place}, where there is no python")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let mergekit compute every case, in one process, and return the folder of results."""
    python = mergekit_python()
    if python is None:
        pytest.skip("set MERGECONF_MERGEKIT to an environment that holds mergekit 0.1.5")
    folder = tmp_path_factory.mktemp("mergekit")
    folders = {kind: write(family(kind), folder / "models" / kind) for kind in KINDS}
    for case in [*all_cases(), *RANDOM]:
        recipe = yaml.safe_dump(case.recipe(folders[case.kind]))
        (folder / f"{case.name}.yaml").write_text(recipe)
    worker = Path(__file__).with_name("mergekit_worker.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(
        [str(python), str(worker), str(folder)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "version").read_text() == "0.1.5"
    return folder


@pytest.fixture(scope="module")
def families() -> dict[str, list[Tensors]]:
    """Return the models of every kind, the base first."""
    return {kind: family(kind) for kind in KINDS}


def inputs_of(
    case: Case, models: list[Tensors], name: str
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Return a tensor of the base and of the models."""
    base, *others = (model[name] for model in models[: 1 + case.models])
    return (base if case.base else None), others


def distances(case: Case, folder: Path, models: list[Tensors]) -> Iterator[tuple[str, Distance]]:
    """Yield for each tensor how far mergeconf's is from mergekit's."""
    theirs = load_file(folder / case.name / "model.safetensors")
    assert set(theirs) == set(models[0])
    for name, want in theirs.items():
        base, others = inputs_of(case, models, name)
        method = all_methods()[case.method]
        got = evaluate(method, base, others, case.parameters, name=name, out_dtype=torch.float32)
        decided = None if base is None else ~undecided(case, base, others)
        inputs = [*others, *([] if base is None else [base])]
        yield name, distance(got, want, inputs, decided)


def is_comparable(case: Case) -> bool:
    """Tell whether the rule for ties leaves anything to compare.

    Where magnitudes repeat and each trimmed delta is rescaled, the factors differ with the choice
    among equals, and an election of signs may turn out differently anywhere.
    """
    elects = case.method in ("ties", "breadcrumbs_ties")
    return not (elects and case.kind != "plain" and case.shared.get("rescale"))


def is_refused(case: Case) -> bool:
    """Tell whether mergekit refuses a case: three or more tensors (or deltas) that are all 0."""
    return case.method == "multislerp" and case.kind == "odd" and case.models > 2


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_method(method: str, merged: Path, families: dict[str, list[Tensors]]) -> None:
    compared, worst = 0, NONE
    for case in all_cases():
        if case.method != method or is_refused(case) or not is_comparable(case):
            continue
        limit = promise(case)
        for name, found in distances(case, merged, families[case.kind]):
            assert found | limit == limit, (case.name, name, found)
            worst |= found
        compared += 1
    print(f"{method}: {compared} merges, {worst}")
    assert compared >= 6


@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.name)
def test_random_methods_by_their_statistics(
    case: Case, merged: Path, families: dict[str, list[Tensors]]
) -> None:
    theirs = load_file(merged / case.name / "model.safetensors")
    models, density = families[case.kind], case.each["density"][0]
    kept = {"mergekit": 0, "mergeconf": 0}
    mean = variance = 0.0
    for name, their in theirs.items():
        base, others = inputs_of(case, models, name)
        assert base is not None
        ours = evaluate(all_methods()[case.method], base, others, case.parameters, name=name)
        delta = others[0] - base
        chances = chances_of(case, delta.abs(), density)[delta != 0]
        mean, variance = mean + chances.sum(), variance + (chances * (1 - chances)).sum()
        for tool, result in (("mergekit", their), ("mergeconf", ours)):
            moved = result - base
            kept[tool] += int((moved != 0).sum())
            if moved.any():  # of a short vector all may be dropped
                torch.testing.assert_close(moved.abs().sum(), delta.abs().sum(), rtol=1e-4, atol=0)
    for count in kept.values():
        assert abs(count - mean) < 5 * variance**0.5


def chances_of(case: Case, magnitude: torch.Tensor, density: float) -> torch.Tensor:
    """Return the probability with which each element is kept."""
    if "epsilon" not in case.each:
        return torch.full_like(magnitude, density)
    epsilon = case.each["epsilon"][0]
    ranks = magnitude.argsort(dim=-1).argsort(dim=-1) / (magnitude.shape[-1] - 1)
    return density - epsilon + 2 * epsilon * ranks


def test_all_methods_are_compared() -> None:
    missing = set(all_methods()) - set(SETTINGS) - {"parameter_selection"}
    assert missing == set()


@pytest.mark.parametrize("case", [c for c in all_cases() if is_refused(c)], ids=lambda c: c.name)
def test_mergekit_refuses_where_mergeconf_does_not(
    case: Case, merged: Path, families: dict[str, list[Tensors]]
) -> None:
    assert (
        "weighted sum of the input tensors is zero" in (merged / f"{case.name}.error").read_text()
    )
    method = all_methods()[case.method]
    for name in families[case.kind][0]:
        base, others = inputs_of(case, families[case.kind], name)
        assert evaluate(method, base, others, case.parameters, name=name).isfinite().all()
