r"""How a test that looks at the data several times spends its level.

By the time that a share t of the items is read, a test at level alpha may have raised a false alarm
with probability alpha t^2 (Lan and DeMets, Biometrika 1983; Kim and DeMets, Biometrika 1987). The
bounds follow by recursive integration (Armitage, McPherson and Rowe, JRSS A 1969): the score at
share t, times sqrt(t), is a Brownian motion if nothing changed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from gks_eval.evidence.stats.streams import Floats

__all__ = ["LOOKS", "bounds", "spent"]

LOOKS: Final = (0.05, 0.10, 0.20, 0.35, 0.55, 0.75, 1.0)
"""Shares of the items after which to look."""

_NODES: Final = 200
_FAR: Final = 9.0


def spent(share: float, alpha: float) -> float:
    """Return the part of a level that may be spent by a share of the items."""
    return alpha * share**2


@lru_cache(maxsize=4096)
def bounds(shares: tuple[float, ...], levels: tuple[float, ...]) -> tuple[float, ...]:
    r"""Return the one-sided bounds of z at which a test stops.

    The k-th bound c_k fulfils

    .. math:: P(z_k \ge c_k \text{ and } z_j < c_j \text{ for all } j < k) = \text{level}_k.

    Args:
        shares: Of the items read at each look, increasing.
        levels: The part of the level that each look spends, above 0.

    Raises:
        ValueError: The shares do not increase, or a level is not between 0 and 1.
    """
    steps = np.diff([0.0, *shares])
    if len(shares) != len(levels) or np.any(steps <= 0.0) or not all(0 < p < 1 for p in levels):
        raise ValueError("looks need increasing shares of the items and levels between 0 and 1")
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    points, density = np.zeros(1), np.ones(1)  # of the motion, if no look has stopped it yet
    found: list[float] = []
    for share, step, level in zip(shares, np.sqrt(steps), levels, strict=True):
        root = math.sqrt(share)
        bound = _bound(points / step, density, root / step, level)
        found.append(bound)
        half = (bound + _FAR) * root / 2.0
        new = half * (nodes + 1.0) - _FAR * root
        density = norm.pdf((new[:, None] - points) / step) @ density * (half * weights / step)
        points = new
    return tuple(found)


def _bound(points: Floats, density: Floats, scale: float, level: float) -> float:
    """Return the c at which the motion from `points` exceeds c scale with chance `level`."""

    def excess(c: float) -> float:
        return float(density @ ndtr(points - c * scale)) - level

    return float(brentq(excess, -_FAR, _FAR, xtol=1e-9))
