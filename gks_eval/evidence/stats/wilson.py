"""Confidence interval of one accuracy."""

from __future__ import annotations

from scipy.stats import binomtest

__all__ = ["wilson_interval"]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval of a proportion.

    With p = successes / n and z the normal quantile of the confidence, the bounds are

    .. math:: \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Raises:
        ValueError: `n` is not positive or `successes` not in 0..n.
    """
    if n <= 0:
        raise ValueError("an interval needs at least one item")
    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)
