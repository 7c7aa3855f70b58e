"""Score interval and test of the difference of two accuracies on the same items."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

__all__ = ["paired_interval", "paired_score", "worse_by_more_p"]

_EDGE = 1e-12


def paired_score(gains: int, losses: int, n: int, difference: float) -> float:
    r"""Return Tango's score statistic for a difference of paired proportions.

    .. math:: Z(d) = \frac{g - l - n d}{\sqrt{n (2 q + d (1 - d))}}

    where q, the probability of a loss under difference d, maximises the likelihood:
    :math:`q = (\sqrt{B^2 - 4AC} - B) / 2A`, A = 2n, B = (2n - g + l) d - g - l,
    C = -l d (1 - d). At d = 0 it is McNemar's :math:`(g - l)/\sqrt{g + l}`.
    Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 1998.

    Args:
        gains: Items that only the second run gets right, g.
        losses: Items that only the first run gets right, l.
        n: All pairs.
        difference: Hypothetical accuracy of the second run less the first's, d.
    """
    a = 2.0 * n
    b = (2.0 * n - gains + losses) * difference - gains - losses
    c = -losses * difference * (1.0 - difference)
    q = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * q + difference * (1.0 - difference))
    excess = gains - losses - n * difference
    if variance <= 0.0:
        return 0.0 if abs(excess) < _EDGE * n else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def paired_interval(
    gains: int, losses: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Tango's interval: all differences that the score test does not reject.

    Unlike a bootstrap it keeps a width when no item is discordant: z^2 / (n + z^2) each way.

    Raises:
        ValueError: The counts do not fit each other.
    """
    if n <= 0 or gains < 0 or losses < 0 or gains + losses > n:
        raise ValueError(f"{gains} gains and {losses} losses do not fit {n} pairs")
    z = float(norm.isf((1.0 - confidence) / 2.0))
    estimate = (gains - losses) / n

    def limit(target: float, low: float, high: float) -> float:
        def miss(d: float) -> float:
            return max(min(paired_score(gains, losses, n, d), 1e6), -1e6) - target

        return float(brentq(miss, low, high, xtol=1e-12))

    lower = -1.0 if estimate <= -1.0 else limit(z, -1.0 + _EDGE, estimate)
    upper = 1.0 if estimate >= 1.0 else limit(-z, estimate, 1.0 - _EDGE)
    return lower, upper


def worse_by_more_p(gains: int, losses: int, n: int, tolerance: float) -> float:
    """Return the one-sided p-value of "the second run is worse by more than `tolerance`".

    Small values speak for a drop beyond the tolerance. Asymptotic (score test); for a tolerance of
    zero the exact `mcnemar_exact(..., alternative="less")` serves better.
    """
    return float(norm.cdf(paired_score(gains, losses, n, -tolerance)))
