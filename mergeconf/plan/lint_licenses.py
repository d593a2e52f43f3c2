"""Can the licenses of all models that are merged hold for the result?

A small table of facts about well-known licenses; what it does not know it says nothing about. It
compares what models' files and the recipe say, and is no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mergeconf.checkpoint.licenses import find_license, normalized
from mergeconf.errors import Problem, listed
from mergeconf.plan.data import Plan

Kind = Literal["permissive", "share alike", "own terms", "noncommercial", "no derivatives"]

_KINDS: dict[Kind, tuple[str, ...]] = {
    "permissive": (
        "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0",
        "cc-by-4.0", "cc-by-3.0", "cdla-permissive-2.0", "zlib",
    ),
    "share alike": (
        "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    ),
    "own terms": (
        "llama2", "llama-2", "llama3", "llama-3", "llama3.1", "llama3.2", "llama3.3", "llama4",
        "gemma", "tongyi-qianwen", "qwen", "bigscience-bloom-rail-1.0", "bigscience-openrail-m",
        "creativeml-openrail-m", "bigcode-openrail-m", "openrail", "openrail++", "deepseek",
        "falcon-llm-license", "yi-license",
    ),
    "noncommercial": (
        "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0", "mrl", "mnpl", "mnpl-0.1", "qwen-research", "tongyi-qianwen-research",
        "fair-noncommercial-research-license",
    ),
    "no derivatives": (
        "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    ),
}  # fmt: skip
"""What is known of which licenses, by the names that model cards use."""
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}

_ASKS: dict[Kind, str] = {
    "share alike": "which asks the same license of what is derived from it",
    "own terms": "whose terms go with what is derived from it",
    "noncommercial": "which allows no commercial use",
}

_TOO_MUCH: dict[Kind, tuple[Kind, ...]] = {
    "permissive": ("share alike", "own terms", "noncommercial"),
    "share alike": ("own terms", "noncommercial"),
    "own terms": ("share alike", "noncommercial"),
    "noncommercial": ("share alike",),
}
"""For the license of the output: those of models that ask for what it does not."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A license, and the models that have it."""

    name: str
    kind: Kind
    models: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} of {listed(self.models, 3)}"


def conflicting_licenses(plan: Plan) -> Iterator[Problem]:
    """Warn of licenses that cannot both hold, and of an output that promises more than it may."""
    found = _licenses(plan)
    for license in found:
        if license.kind == "no derivatives":
            yield _problem(plan, f"{license} does not allow sharing what is derived from it", "")
    declared = plan.recipe.metadata.get("license")
    name = normalized(declared) if isinstance(declared, str) else ""
    target = _KIND_OF.get(name)
    for license in found:
        if target is not None and license.kind in _TOO_MUCH.get(target, ()):
            yield _problem(
                plan,
                f"{name} promises more than the models give: {license}, {_ASKS[license.kind]}",
                "name a license that keeps to it, or leave those models out",
            )
    for one, other in _pairs(found):
        yield _problem(
            plan,
            f"two licenses cannot both hold: {one}, {_ASKS[one.kind]}, and {other}, "
            f"{_ASKS[other.kind]}",
            "leave the models of one of them out, or ask their makers",
        )


def _pairs(found: Sequence[_Found]) -> Iterator[tuple[_Found, _Found]]:
    """Yield what asks the same license of the result with what asks for something else."""
    for one in found:
        for other in found:
            if one.kind == "share alike" and other.kind in ("own terms", "noncommercial"):
                yield one, other


def _licenses(plan: Plan) -> list[_Found]:
    """Return the known licenses of the models whose tensors the output is made from."""
    used = {stored.file for tensor in plan.tensors for stored in tensor.inputs}
    models: dict[str, list[str]] = {}
    for checkpoint in plan.checkpoints:
        if any(file.path in used for file in checkpoint.files):
            license = find_license(checkpoint.folder)
            if license is not None and license.name in _KIND_OF:
                models.setdefault(license.name, []).append(f"{checkpoint.label} ({license.file})")
    return [_Found(name, _KIND_OF[name], tuple(labels)) for name, labels in models.items()]


def _problem(plan: Plan, message: str, hint: str) -> Problem:
    declared = "license" in plan.recipe.metadata
    where = "metadata.license" if declared else "models"
    location = plan.recipe.locations.get("metadata" if declared else "models")
    return Problem(message, where, location, hint, "warning", "license-conflict")
