"""Test of the difference of two accuracies on the same items, and the interval that inverts it.

The test is the one-sided `less_p` of a hypothetical difference d. At d = 0 it is McNemar's exact
test. At any other d it is the profile likelihood of d with a continuity correction, chosen so that
the test is exact at 0. Its p never increases with d. So the differences that it does not reject
form an interval, which excludes 0 exactly if the test rejects 0.
"""

from __future__ import annotations

import math

from scipy.special import ndtri_exp, xlogy
from scipy.stats import beta, binom, norm

from gks_eval.evidence.stats.roots import root

__all__ = ["less_p", "paired_interval", "signed_root"]


def signed_root(gains: float, losses: float, n: float, difference: float) -> float:
    r"""Return the signed root of the likelihood ratio of a difference of paired proportions.

    .. math:: r(d) = \operatorname{sign}(g - l - n d) \sqrt{2 \left(\ell(\hat p) - \ell(p_d)\right)}

    with the multinomial log-likelihood :math:`\ell` of g gains, l losses and n - g - l unchanged
    pairs. Under d the probability of a loss is :math:`q = (\sqrt{B^2 - 4AC} - B) / 2A`, A = 2n,
    B = (2n - g + l) d - g - l, C = -l d (1 - d) (Tango, Statistics in Medicine 1998), that of a
    gain q + d.

    Args:
        gains: Items that only the second run gets right, g; need not be whole.
        losses: Items that only the first run gets right, l; need not be whole.
        n: All pairs.
        difference: Hypothetical accuracy of the second run minus the first's, d.
    """
    b = (2.0 * n - gains + losses) * difference - gains - losses
    c = -losses * difference * (1.0 - difference)
    spread = math.sqrt(max(b * b - 8.0 * n * c, 0.0))
    # The root of the quadratic in two forms, each without cancellation.
    q = (spread - b) / (4.0 * n) if b < 0.0 else -2.0 * c / (spread + b) if spread + b else 0.0
    q = max(q, 0.0, -difference)
    cells = ((gains, q + difference), (losses, q), (n - gains - losses, 1.0 - 2.0 * q - difference))
    deviance = 0.0
    for count, probability in cells:
        if count > 1e-9:  # fractional counts leave a rounding error
            if probability <= 0.0:
                return math.copysign(math.inf, gains - losses - n * difference)
            deviance += 2.0 * float(xlogy(count, count / (n * probability)))
    return math.copysign(math.sqrt(max(deviance, 0.0)), gains - losses - n * difference)


def less_p(gains: int, losses: int, n: int, difference: float = 0.0, mid: bool = False) -> float:
    r"""Return the one-sided p-value for a true difference below `difference`.

    At 0 this is the exact McNemar test. Elsewhere it is :math:`\Phi(r(d))` with c more gains and c
    fewer losses, where c makes the test exact at 0. This c lies between 0 and 1 (Zubkov and Serov,
    Theory of Probability and its Applications 2013), usually near 1/2. Without losses this is the
    exact binomial test of the gains.

    Args:
        gains: Items that only the second run gets right.
        losses: Items that only the first run gets right.
        n: All pairs.
        difference: The hypothesis; a tolerated drop of 0.02 is -0.02.
        mid: Count the observed outcome with half its probability (mid-p; Lancaster, JASA 1961). The
            test then has more power, and no guarantee of its level.
    """
    if difference == 0.0:
        return _tail(gains, gains + losses, 0.5, mid)
    if losses == 0:
        return _tail(gains, n, difference, mid) if difference > 0.0 else 1.0
    c = _correction(gains, losses, mid)
    return float(norm.cdf(signed_root(gains + c, losses - c, n, difference)))


def paired_interval(
    gains: int, losses: int, n: int, confidence: float = 0.95, mid: bool = False
) -> tuple[float, float]:
    """Return the differences that `less_p`, in both directions, does not reject at alpha / 2.

    The interval excludes 0 exactly if the two-sided McNemar test, exact or mid-p, has
    p < 1 - confidence.
    Without discordant items it extends 1 - (alpha/2)^(1/n) in both directions.

    Raises:
        ValueError: The counts do not fit each other.
    """
    if n <= 0 or gains < 0 or losses < 0 or gains + losses > n:
        raise ValueError(f"{gains} gains and {losses} losses do not fit {n} pairs")
    return -_upper(losses, gains, n, confidence, mid), _upper(gains, losses, n, confidence, mid)


def _tail(gains: int, n: int, share: float, mid: bool) -> float:
    tail = float(binom.cdf(gains, n, share))
    return tail - 0.5 * float(binom.pmf(gains, n, share)) if mid else tail


def _upper(gains: int, losses: int, n: int, confidence: float, mid: bool) -> float:
    tail = (1.0 - confidence) / 2.0
    if gains == n:
        return 1.0
    if losses == 0:
        exact = float(beta.isf(tail, gains + 1, n - gains))
        return root(lambda d: _tail(gains, n, d, True) - tail, 0.0, exact) if mid else exact
    c = _correction(gains, losses, mid)
    z = float(norm.ppf(tail))

    def miss(d: float) -> float:
        return max(signed_root(gains + c, losses - c, n, d), -1e3) - z

    # The test decides on which side of 0 the limit lies, whatever the rounding.
    if 2.0 * less_p(gains, losses, n, mid=mid) < round(1.0 - confidence, 12):
        return min(root(miss, (gains - losses) / n, 0.0), -math.ulp(0.0))
    return max(root(miss, max(0.0, (gains - losses) / n), 1.0), 0.0)


def _correction(gains: int, losses: int, mid: bool) -> float:
    """Return the c of `less_p`, for one loss or more."""
    pairs = gains + losses
    if mid:
        exact = float(norm.ppf(_tail(gains, pairs, 0.5, mid)))
    elif 2 * gains < pairs:
        exact = float(ndtri_exp(binom.logcdf(gains, pairs, 0.5)))
    else:
        exact = -float(ndtri_exp(binom.logsf(gains, pairs, 0.5)))
    if not math.isfinite(exact):
        return 0.0 if mid else 0.5  # the tail is beyond the range of floats

    def miss(c: float) -> float:
        return signed_root(gains + c, losses - c, pairs, 0.0) - exact

    return root(miss, -1.0 if mid and gains else 0.0, 1.0)
