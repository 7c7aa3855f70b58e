"""Bootstrap of means over items, within tasks and over a group of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gks_eval.evidence.stats.streams import Floats, canonical, content_stream

__all__ = ["bootstrap_interval", "bootstrap_p", "group_means", "resampled_means"]

DRAWS = 9_999
# With few distinct values, their counts are drawn instead of items: the distribution is the same,
# and the cost does not grow with the number of items.
_FEW = 64
_CHUNK = 4_000_000


def resampled_means(
    values: Sequence[float] | Floats, rng: np.random.Generator, draws: int
) -> Floats:
    """Return `draws` means of resamples with replacement.

    Args:
        values: The items' values, (n,).
        rng: Source of randomness.
        draws: Number of resamples.

    Returns:
        Means, (draws,).

    Raises:
        ValueError: No values.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("a bootstrap needs at least one item")
    distinct, counts = np.unique(data, return_counts=True)
    if distinct.size <= _FEW:
        drawn = rng.multinomial(data.size, counts / data.size, size=draws)
        return np.asarray(drawn @ distinct / data.size, dtype=np.float64)
    means = np.empty(draws)
    step = max(1, _CHUNK // data.size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, data.size, size=(rows, data.size))
        means[start : start + rows] = data[chosen].mean(axis=1)
    return means


def group_means(
    tasks: Sequence[Sequence[float] | Floats],
    weights: Sequence[float],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, Floats]:
    """Return a group's average and its bootstrap over items within tasks.

    The tasks are fixed and their items are the sample: every draw resamples the items of each task
    and averages the tasks' means with `weights`.

    Args:
        tasks: Per task its items' values (or paired differences), (n_t,).
        weights: Per task, summing to 1: 1/T, or n_t / sum n as lm-eval weights by size.
        draws: Number of resamples.
        seed: Seed, together with the values, see `canonical`.

    Returns:
        The average, and (draws,) resampled averages.
    """
    sign, samples, shares = canonical(tasks, weights)
    rng = content_stream(seed, *samples)
    average = math.fsum(w * float(np.mean(v)) for w, v in zip(shares, samples, strict=True))
    drawn = np.zeros(draws)
    for weight, values in zip(shares, samples, strict=True):
        drawn += weight * resampled_means(values, rng, draws)
    return sign * average, sign * drawn


def bootstrap_interval(drawn: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled means."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap_p(
    estimate: float, drawn: Floats, margin: float | None = None, changed: int | None = None
) -> float:
    """Return a p-value for a mean difference from its bootstrap, shifted to the hypothesis.

    Without `margin` the test is two-sided for "no difference". With it the test is one-sided, and p
    is small if the difference lies below ``-margin``. One is added to count and total, so p is at
    least 1 / (draws + 1).

    A bootstrap of few changed items is overconfident. Under "no difference" the sign of each of m
    changes is a fair coin, so the smallest p of a sign test is 2^-m, one-sided. If `changed` gives
    m, p is at least that, and twice that if two-sided.
    """
    deviations = drawn - estimate
    slack = 1e-12 * max(1.0, abs(estimate))
    if margin is None:
        extreme = np.abs(deviations) >= abs(estimate) - slack
    else:
        extreme = deviations <= estimate + margin + slack
    p = (np.count_nonzero(extreme) + 1) / (drawn.size + 1)
    if changed is not None and not margin:
        p = max(p, min(1.0, (2.0 if margin is None else 1.0) * 0.5**changed))
    return float(p)
