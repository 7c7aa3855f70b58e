"""Two runs without paired items: a weaker comparison, for where samples are missing."""

from __future__ import annotations

import math

from scipy.stats import norm
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

__all__ = ["mean_difference", "proportion_difference"]


def proportion_difference(
    first: int, n_first: int, second: int, n_second: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (low, high, two-sided p) of the second accuracy less the first, as if independent.

    Newcombe's interval from two Wilson intervals (Statistics in Medicine 1998) and the score test
    of equal proportions.
    """
    low, high = confint_proportions_2indep(
        second, n_second, first, n_first, method="newcomb", alpha=1.0 - confidence
    )
    if first + second in (0, n_first + n_second):
        return float(low), float(high), 1.0
    _, p = proportions_ztest([second, first], [n_second, n_first])
    return float(low), float(high), float(p)


def mean_difference(
    first: float, first_stderr: float, second: float, second_stderr: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (low, high, two-sided p) of a difference of means from their standard errors."""
    spread = math.hypot(first_stderr, second_stderr)
    difference = second - first
    half = float(norm.isf((1.0 - confidence) / 2.0)) * spread
    if spread == 0.0:
        return difference, difference, 1.0 if difference == 0.0 else 0.0
    return difference - half, difference + half, float(2.0 * norm.sf(abs(difference) / spread))
