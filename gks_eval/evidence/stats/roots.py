"""Roots of monotone functions, robust to rounding at the ends."""

from __future__ import annotations

from collections.abc import Callable

from scipy.optimize import brentq

__all__ = ["root"]


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root between two points, or the nearer point if the sign does not change."""
    at_low, at_high = function(low), function(high)
    if at_low * at_high > 0.0:
        return low if abs(at_low) < abs(at_high) else high
    return float(brentq(function, low, high, xtol=1e-12))
