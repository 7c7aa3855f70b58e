"""Test of a mean of paired differences by sign flips, and the interval that inverts it.

If the differences are symmetric about d, flipping the signs of x_i - d does not change their
distribution. Their sum is at least as large as after flipping the items S exactly if the mean of S
is at least d. So the p-value of d is the share of random subsets S with such a mean, and the
quantiles of the subset means are the interval. Fisher 1935; Hartigan, "Using subsample values as
typical values", JASA 1969. On differences of -1, 0 and 1 the test of 0 is McNemar's.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gks_eval.evidence.stats.streams import Floats, canonical, content_stream

__all__ = ["DRAWS", "flip_interval", "less_p", "subset_means", "two_sided_p"]

DRAWS: Final = 9_999
# Up to _ALL items all subsets are used; up to _FEW distinct values their counts are drawn.
_ALL, _FEW = 13, 64
_CHUNK = 4_000_000


def subset_means(values: Floats, draws: int, seed: int = 0) -> Floats:
    """Return sorted means of random subsets, each item in or out with probability 1/2.

    Args:
        values: Paired differences, (n,).
        draws: Number of subsets; all 2^n - 1 are taken where n is at most 13.
        seed: Seed, together with the values: order and names have no effect, and negated values
            give negated means.

    Returns:
        Means, (draws,) or (2^n - 1,).

    Raises:
        ValueError: No values.
    """
    if not values.size:
        raise ValueError("a test needs at least one item")
    sign, (data,), _ = canonical([values], [1.0])
    largest = float(np.abs(data).max())
    if np.ptp(data) <= 1e-12 * largest:  # all equal: rounding must not create a spread
        return np.full(min(draws, 2 ** min(data.size, 30) - 1), sign * data[0])
    means = _all_means(data) if data.size <= _ALL else _drawn_means(data, draws, seed)
    # Means that differ from 0 only by rounding are 0.
    means[np.abs(means) <= 1e-13 * largest] = 0.0
    return np.sort(sign * means)


def less_p(means: Floats, difference: float = 0.0) -> float:
    """Return the one-sided p-value for a true mean below `difference`.

    One is added to count and total for the empty subset, so it is never zero.
    """
    slack = 1e-12 * abs(difference)
    return float((np.count_nonzero(means >= difference - slack) + 1) / (means.size + 1))


def two_sided_p(means: Floats) -> float:
    """Return the two-sided p-value of "no difference"."""
    return min(1.0, 2.0 * less_p(means), 2.0 * less_p(-means))


def flip_interval(means: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the means that the test does not reject at alpha / 2, or None if it rejects none.

    The interval excludes 0 exactly if `two_sided_p` is below 1 - confidence.
    """
    # Rounded, because 1 - 0.95 is not 0.05 in floats.
    kept = math.ceil(round((1.0 - confidence) / 2.0 * (means.size + 1), 9)) - 1
    return (float(means[kept - 1]), float(means[-kept])) if kept > 0 else None


def _all_means(data: Floats) -> Floats:
    masks = np.arange(1, 2**data.size)[:, None] >> np.arange(data.size) & 1
    return np.asarray(masks @ data / masks.sum(axis=1), dtype=np.float64)


def _drawn_means(data: Floats, draws: int, seed: int) -> Floats:
    rng = content_stream(seed, data)
    distinct, counts = np.unique(data, return_counts=True)
    if distinct.size <= _FEW:
        drawn = rng.binomial(counts, 0.5, size=(draws, distinct.size))
        return np.asarray(drawn @ distinct / np.maximum(drawn.sum(axis=1), 1), dtype=np.float64)
    means = np.empty(draws)
    step = max(1, _CHUNK // data.size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, 2, size=(rows, data.size), dtype=np.int8).astype(np.float64)
        means[start : start + rows] = chosen @ data / np.maximum(chosen.sum(axis=1), 1.0)
    return means
