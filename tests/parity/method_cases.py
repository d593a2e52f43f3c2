"""Which merges are compared: every method with several parameter sets, for 2 to 5 models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeconf.methods import all_methods

KINDS = ("plain", "bfloat16", "odd")


@dataclass(frozen=True)
class Case:
    """One merge."""

    method: str
    kind: str
    """Which family of models is merged."""
    models: int
    """How many, beside the base."""
    base: bool
    shared: dict[str, Any] = field(default_factory=dict)
    """Parameters of the whole merge."""
    each: dict[str, list[float]] = field(default_factory=dict)
    """Parameters of each model."""
    number: int = 0

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.method}-{self.kind}-{self.models}{'b' if self.base else ''}-{self.number}"

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters as a method of mergeconf takes them."""
        each = {name: tuple(values[: self.models]) for name, values in self.each.items()}
        known = all_methods()[self.method].parameters
        return {name: value for name, value in {**self.shared, **each}.items() if name in known}

    def recipe(self, folders: list[Path]) -> dict[str, Any]:
        """Return mergekit's recipe; the base's folder is the first."""
        models = [
            {"model": str(folder), "parameters": {k: v[i] for k, v in self.each.items()}}
            for i, folder in enumerate(folders[1 : 1 + self.models])
        ]
        recipe = {"merge_method": self.method, "models": models, "dtype": "float32"}
        if self.base:
            recipe["base_model"] = str(folders[0])
        if self.shared:
            recipe["parameters"] = self.shared
        return recipe


WEIGHTS = [0.7, 0.4, 0.55, 0.3, 0.25]
MIXED = [0.7, -0.4, 0.5, 0.3, -0.2]
DENSITY = [0.3, 0.52, 0.8, 0.11, 0.95]
ONES = [1.0] * 5

Settings = tuple[dict[str, Any], dict[str, list[float]]]

_TASK: list[Settings] = [
    ({}, {"weight": WEIGHTS}),
    ({"normalize": True, "lambda": 0.7}, {"weight": MIXED}),
]
_SPARSE: list[Settings] = [
    ({}, {"weight": WEIGHTS, "density": DENSITY}),
    ({"normalize": False, "lambda": 1.3}, {"weight": MIXED, "density": DENSITY}),
    ({"normalize": True, "rescale": True}, {"weight": WEIGHTS, "density": DENSITY}),
    ({"int8_mask": True}, {"weight": ONES, "density": [0.0, 1.0, 0.5, 0.0005, 0.9]}),
]
_OUTLIERS: list[Settings] = [
    *_SPARSE,
    ({}, {"weight": ONES, "density": DENSITY, "gamma": [0.0, 0.1, 0.3, 0.02, 0.5]}),
]
_WHOLE: list[Settings] = [
    ({}, {"weight": WEIGHTS}),
    ({"normalize": True, "lambda": 0.6}, {"weight": MIXED, "density": ONES}),
]
SETTINGS: dict[str, list[Settings]] = {
    "linear": [({}, {"weight": WEIGHTS}), ({"normalize": False}, {"weight": MIXED})],
    "slerp": [({"t": t}, {}) for t in (0.0, 0.3, 0.5, 1.0)],
    "passthrough": [({}, {}), ({"scale": 0.37}, {})],
    "task_arithmetic": _TASK,
    "ties": [*_WHOLE, *_SPARSE],
    "dare_linear": _WHOLE,
    "dare_ties": _WHOLE,
    "della": _WHOLE,
    "della_linear": _WHOLE,
    "breadcrumbs": [*_WHOLE, *_OUTLIERS],
    "breadcrumbs_ties": [*_WHOLE, *_OUTLIERS],
    "multislerp": [
        ({}, {"weight": WEIGHTS}),
        ({"normalize_weights": False}, {"weight": MIXED}),
        ({"eps": 1e-4}, {"weight": ONES}),
    ],
    "karcher": [
        ({}, {}),
        ({"max_iter": 1}, {"weight": WEIGHTS}),
        ({"max_iter": 50, "tol": 1e-7}, {}),
    ],
    "nuslerp": [
        ({}, {"weight": WEIGHTS}),
        ({"nuslerp_row_wise": True}, {"weight": MIXED}),
        ({"nuslerp_flatten": True}, {"weight": [0.5, -0.5]}),
        ({"nuslerp_flatten": False}, {"weight": WEIGHTS}),
        ({"nuslerp_flatten": False}, {"weight": MIXED}),
        ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": WEIGHTS}),
        ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": MIXED}),
        ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, {"weight": ONES}),
    ],
    "model_stock": [
        ({}, {}),
        ({"filter_wise": False}, {"weight": WEIGHTS}),
        ({"filter_wise": True}, {}),
    ],
    "arcee_fusion": [({}, {}), ({"int8_mask": True}, {})],
    "sce": [({"select_topk": share}, {}) for share in (1.0, 0.5, 0.13, 0.0)]
    + [({}, {"weight": WEIGHTS})],
    "nearswap": [({"t": t}, {}) for t in (0.0, 1e-4, 0.01, 1.0)],
    "ram": [({}, {}), ({"epsilon": 0.01}, {}), ({"epsilon": 0.0}, {})],
    "ramplus_tl": [({}, {}), ({"epsilon": 0.01}, {}), ({"r": 0.4, "alpha": 3.0}, {})],
}  # fmt: skip


RANDOM = [
    Case(
        method,
        "plain",
        2,
        True,
        {"normalize": False},
        {"weight": [1.0, 0.0], "density": [density, 1.0]}
        | ({"epsilon": [0.09, 0.15]} if method.startswith("della") else {}),
        number,
    )
    for method in ("dare_linear", "dare_ties", "della", "della_linear")
    for number, density in enumerate((0.1, 0.53, 0.9), start=100)
]
"""Merges that draw at random: one model's delta, thinned out."""


def all_cases() -> list[Case]:
    """Return every merge that is compared."""
    found = []
    for method, settings in SETTINGS.items():
        known = all_methods()[method]
        most = known.max_models or 5
        counts = range(max(2, known.min_models), 6) if most > 2 else (most,)
        with_base = {"required": (True,), "optional": (False, True), "unused": (False,)}
        for kind in KINDS:
            for models in counts:
                for base in with_base[known.base]:
                    for number, (shared, each) in enumerate(settings):
                        found.append(Case(method, kind, models, base, shared, each, number))
    return found
