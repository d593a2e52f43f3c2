"""Where an order statistic leaves a choice: the positions that are exempt from comparison.

mergekit keeps exactly k elements, an arbitrary choice of those equal to the k-th; mergeconf keeps
or drops equal magnitudes together. Elsewhere both have to agree.
"""

from __future__ import annotations

import torch

from parity.method_cases import Case

_DIVERGENCE_ERROR = 1e-7
"""How far mergekit's divergence of a row, a sum in float32, may be off: about this."""
_VARIANCE_ERROR = 1e-5
"""Variances nearer than this to the threshold, as a share of it, may fall on either side."""


def undecided(case: Case, base: torch.Tensor, models: list[torch.Tensor]) -> torch.Tensor:
    """Return the mask of positions at which the rule for ties decides."""
    deltas = [model.to(torch.float32) - base.to(torch.float32) for model in models]
    mask = torch.zeros(base.shape, dtype=torch.bool)
    if case.method == "sce":
        return mask | _near_variance_threshold(deltas, float(case.shared.get("select_topk", 1.0)))
    if case.method == "arcee_fusion":
        return mask | _near_fusion_threshold(models[0].double(), base.double())
    if case.method not in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        return mask
    gammas = case.each.get("gamma", [0.01] * len(deltas))
    densities = case.each.get("density", [1.0] * len(deltas))
    for delta, density, gamma in zip(deltas, densities, gammas, strict=False):
        gamma = 0.0 if case.method == "ties" else gamma
        magnitude = delta.abs()
        for threshold in _thresholds(magnitude.flatten(), density, gamma):
            mask |= (magnitude == threshold) & (magnitude > 0)
    return mask


def _thresholds(magnitude: torch.Tensor, density: float, gamma: float) -> list[float]:
    if density >= 1:
        return []
    largest = torch.sort(magnitude, descending=True).values.tolist()
    kept = int(density * len(largest))
    dropped = min(int(gamma * len(largest)), len(largest) - kept)
    edges = {dropped - 1, dropped, dropped + kept - 1, dropped + kept}
    return [largest[edge] for edge in edges if 0 <= edge < len(largest)]


def _near_variance_threshold(deltas: list[torch.Tensor], share: float) -> torch.Tensor:
    variance = torch.stack(deltas).to(torch.float64).var(0, unbiased=False)
    k = int(share * int((variance > 0).sum()))
    if share >= 1 or k == 0:
        return torch.zeros(variance.shape, dtype=torch.bool)
    threshold = variance.flatten().sort(descending=True).values[k - 1]
    return (variance - threshold).abs() <= _VARIANCE_ERROR * threshold


def _near_fusion_threshold(model: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    p, q = model.softmax(-1), base.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1, keepdim=True).clamp(min=0)
    importance = (model - base).abs() * divergence
    if not importance.any():
        return importance > 0
    in_order = importance.flatten().sort().values
    first, median, third = (in_order[int(q * (len(in_order) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    error = _DIVERGENCE_ERROR * (1 + 1 / divergence.median().clamp(min=1e-30)) + 1e-4
    return (importance - threshold).abs() <= error * (importance + threshold)
