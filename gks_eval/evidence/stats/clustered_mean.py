"""The interval of one run's weighted mean over the items of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from gks_eval.evidence.stats.item_score import cluster_codes
from gks_eval.evidence.stats.streams import Floats

__all__ = ["clustered_interval"]


def clustered_interval(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    confidence: float = 0.95,
    clusters: Sequence[Sequence[str]] | None = None,
    unit: bool = False,
) -> tuple[float, float] | None:
    r"""Return the interval of a mean over tasks, or None if the items do not show how they vary.

    The tasks are fixed and their items are the sample. With the scores x_i, their means m_t and the
    weights :math:`a_i = w_t / n_t`,

    .. math:: \sum_t w_t m_t \pm q \sqrt{\sum_c \Big( \sum_{i \in c}
        \sqrt{\tfrac{n_t}{n_t - 1}}\, a_i (x_i - m_t) \Big)^2}

    over the C clusters c, by default single items; q is the quantile of t with C - T degrees of
    freedom. For one task without clusters it is the t interval. A task with a single item does not
    show how its items vary.

    Args:
        tasks: Per task the scores, (n_t,).
        weights: Per task, summing to 1.
        confidence: Of the interval.
        clusters: As for `item_score`.
        unit: Whether the scores lie between 0 and 1; then the interval does as well.
    """
    sizes = [values.size for values in tasks]
    if min(sizes) < 2:
        return None
    means = [float(np.mean(values)) for values in tasks]
    parts = np.concatenate([
        weight * (values - mean) / math.sqrt(values.size * (values.size - 1))
        for values, weight, mean in zip(tasks, weights, means, strict=True)
    ])  # fmt: skip
    if clusters is not None:
        parts = np.bincount(cluster_codes(clusters), parts)
    value = math.fsum(w * mean for w, mean in zip(weights, means, strict=True))
    spread = math.sqrt(float(np.sum(parts**2)))
    if spread <= 1e-12 * max(map(abs, means)):
        return None
    half = float(t.isf((1.0 - confidence) / 2.0, max(1, parts.size - len(sizes)))) * spread
    low, high = value - half, value + half
    return (max(0.0, low), min(1.0, high)) if unit else (low, high)
