"""The power of a paired comparison of n items."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

__all__ = ["detectable_difference", "mcnemar_power", "needed_pairs", "pairs_to_show"]


def mcnemar_power(
    n: int, discordance: float, drop: float, alpha: float = 0.05, two_sided: bool = False
) -> float:
    r"""Return the exact power of McNemar's exact test to detect a drop.

    The number of discordant pairs is m ~ Binomial(n, discordance); of those, losses are
    Binomial(m, (discordance + drop) / (2 discordance)). Summed over m:
    :math:`\sum_m P(m) P(\text{losses} \ge c_m)` with :math:`c_m` the smallest count that the exact
    test rejects.

    Args:
        n: Pairs.
        discordance: Share of items that exactly one of the two runs gets right.
        drop: Accuracy lost, at most `discordance` in size; 0 gives the test's true size.
        alpha: Level.
        two_sided: Whether the test is two-sided; the power is always that of detecting the drop.

    Raises:
        ValueError: The shares do not fit each other.
    """
    if n <= 0 or not 0.0 < discordance <= 1.0 or abs(drop) > discordance:
        raise ValueError(f"a drop of {drop} does not fit a discordance of {discordance}")
    tail = alpha / 2.0 if two_sided else alpha
    m = np.arange(n + 1)
    # isf gives the smallest c with P(X > c) <= tail, so c + 1 losses are needed.
    needed = binom.isf(tail, m, 0.5) + 1
    seen = binom.sf(needed - 1, m, (discordance + drop) / (2.0 * discordance))
    return float(np.sum(binom.pmf(m, n, discordance) * np.where(needed <= m, seen, 0.0)))


def detectable_difference(
    n: int,
    variance: float,
    alpha: float = 0.05,
    power: float = 0.8,
    two_sided: bool = True,
    binary: bool = True,
    largest: float = math.inf,
) -> float:
    r"""Return the smallest difference that n pairs detect with the given power.

    For accuracies `variance` is the discordance :math:`\psi`, and d solves
    :math:`\sqrt{n}\, d = z_\alpha \sqrt{\psi} + z_\beta \sqrt{\psi - d^2}` (Connor, Biometrics
    1987). Otherwise it is the variance of the paired differences and
    :math:`d = (z_\alpha + z_\beta) \sqrt{\psi / n}`, if it is at most `largest`, which is 1 for a
    mean of accuracies.

    Returns:
        The difference; NaN if even the largest possible one is not detected with that power.
    """
    if n <= 0 or variance <= 0.0:
        return math.nan
    z_alpha = float(norm.isf(alpha / 2.0 if two_sided else alpha))
    z_beta = float(norm.isf(1.0 - power))
    if not binary:
        found = (z_alpha + z_beta) * math.sqrt(variance / n)
        return found if found <= largest else math.nan

    def miss(d: float) -> float:
        spread = math.sqrt(max(variance - d * d, 0.0))
        return math.sqrt(n) * d - z_alpha * math.sqrt(variance) - z_beta * spread

    if miss(variance) < 0.0:
        return math.nan
    return float(brentq(miss, 0.0, variance))


def needed_pairs(
    variance: float,
    difference: float,
    alpha: float = 0.05,
    power: float = 0.8,
    binary: bool = True,
) -> int | None:
    r"""Return how many pairs show a difference with the given power, two-sided.

    The inverse of `detectable_difference`: for accuracies
    :math:`n = (z_\alpha \sqrt{\psi} + z_\beta \sqrt{\psi - d^2})^2 / d^2`, else
    :math:`n = (z_\alpha + z_\beta)^2 \psi / d^2`.

    Args:
        variance: As there; a discordance counts as at least d, which it must be to show d.
        difference: To be shown, d > 0.
        alpha: Level.
        power: Chance of seeing it.
        binary: Whether `variance` is a discordance.

    Returns:
        The number; None where nothing varies.
    """
    if variance <= 0.0:
        return None
    if binary:
        variance = max(variance, difference)
    z_alpha, z_beta = float(norm.isf(alpha / 2.0)), float(norm.isf(1.0 - power))
    spread = math.sqrt(variance - difference**2 if binary else variance)
    return math.ceil(((z_alpha * math.sqrt(variance) + z_beta * spread) / difference) ** 2)


def pairs_to_show(
    variance: float, tolerance: float, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    r"""Return how many pairs show that an unchanged candidate loses less than a tolerance.

    .. math:: n = \big(z_\alpha \sqrt{\psi + t^2} + z_\beta \sqrt{\psi}\big)^2 / t^2

    The score of a change of -t has the variance :math:`\psi + t^2` of the hypothesis. If nothing
    varies, it is the n of :math:`(1 - t)^n = \alpha`, where no item got worse.

    Args:
        variance: Of the paired differences; for accuracies their discordance, :math:`\psi`.
        tolerance: Tolerated drop, t.
        alpha: Level, one-sided.
        power: Chance of showing it.

    Returns:
        The number; None if nothing can be shown at a tolerance of 0.
    """
    if not 0.0 < tolerance < 1.0:
        return None
    z_alpha, z_beta = float(norm.isf(alpha)), float(norm.isf(1.0 - power))
    found = z_alpha * math.sqrt(variance + tolerance**2) + z_beta * math.sqrt(variance)
    without_change = math.ceil(math.log(alpha) / math.log1p(-tolerance))
    return max(math.ceil((found / tolerance) ** 2), without_change)
