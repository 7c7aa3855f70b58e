"""Comparison of two runs without paired items; weaker, for runs without samples."""

from __future__ import annotations

import math

from scipy.stats import norm

from gks_eval.evidence.stats.roots import root

__all__ = ["independent_score", "mean_difference", "mean_interval", "proportion_difference"]

_EDGE = 1e-12


def proportion_difference(
    first: int, n_first: int, second: int, n_second: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (low, high, two-sided p) of the second accuracy minus the first, as if independent.

    p is that of the score test of equal proportions. The interval inverts the test, so it excludes
    0 exactly if p < 1 - confidence.
    """
    counts = (first, n_first, second, n_second)
    z = float(norm.isf((1.0 - confidence) / 2.0))
    estimate = second / n_second - first / n_first
    score = independent_score(*counts, 0.0)
    p = float(2.0 * norm.sf(abs(score)))

    def limit(target: float, low: float, high: float) -> float:
        return root(lambda d: independent_score(*counts, d) - target, low, high)

    low = -1.0 if estimate <= -1.0 else limit(z, -1.0 + _EDGE, estimate)
    high = 1.0 if estimate >= 1.0 else limit(-z, estimate, 1.0 - _EDGE)
    # The test decides on which side of 0 a limit lies, whatever the rounding.
    if p >= round(1.0 - confidence, 12):
        return min(low, 0.0), max(high, 0.0), p
    if score > 0.0:
        return max(low, math.ulp(0.0)), high, p
    return low, min(high, -math.ulp(0.0)), p


def independent_score(
    first: int, n_first: int, second: int, n_second: int, difference: float
) -> float:
    r"""Return the score statistic of a difference of two independent proportions.

    .. math:: z(d) = (\hat p_2 - \hat p_1 - d) / \sqrt{p_1 (1 - p_1) / n_1 + p_2 (1 - p_2) / n_2}

    where p_1 maximises the likelihood under p_2 = p_1 + d. At d = 0 it is the z of pooled
    proportions, whose square is Pearson's chi-square. Mee, Biometrics 1984.
    """
    low, high = max(0.0, -difference) + _EDGE, min(1.0, 1.0 - difference) - _EDGE

    def slope(p: float) -> float:
        q = p + difference
        right = first / p + second / q
        return right - (n_first - first) / (1.0 - p) - (n_second - second) / (1.0 - q)

    p = root(slope, low, high) if low < high else low
    q = p + difference
    variance = p * (1.0 - p) / n_first + q * (1.0 - q) / n_second
    excess = second / n_second - first / n_first - difference
    if variance <= 0.0 or abs(excess) < _EDGE:
        return 0.0 if abs(excess) < _EDGE else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def mean_interval(value: float, stderr: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the normal interval of a mean from its standard error."""
    half = float(norm.isf((1.0 - confidence) / 2.0)) * stderr
    return value - half, value + half


def mean_difference(
    first: float, first_stderr: float, second: float, second_stderr: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (low, high, two-sided p) of a difference of means from their standard errors.

    Raises:
        ValueError: Both standard errors are 0.
    """
    spread = math.hypot(first_stderr, second_stderr)
    if spread == 0.0:
        raise ValueError("two standard errors of 0 give no interval")
    difference = second - first
    low, high = mean_interval(difference, spread, confidence)
    return low, high, float(2.0 * norm.sf(abs(difference) / spread))
