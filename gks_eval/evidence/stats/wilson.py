"""Confidence interval of one accuracy."""

from __future__ import annotations

__all__ = ["wilson_interval"]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval of a proportion.

    With p = successes / n and z the normal quantile of the confidence, the bounds are

    .. math:: \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Raises:
        ValueError: `n` is not positive or `successes` not in 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes do not fit {n} items")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1.0 - confidence, method="wilson")
    # Exactly 0 without successes and 1 without failures, whatever the rounding.
    return float(low) if successes else 0.0, float(high) if successes < n else 1.0
