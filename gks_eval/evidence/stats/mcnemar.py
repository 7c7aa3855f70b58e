"""Exact test of two accuracies on the same items."""

from __future__ import annotations

from typing import Literal

from scipy.stats import binomtest

__all__ = ["mcnemar_exact"]


def mcnemar_exact(
    gains: int, losses: int, alternative: Literal["two-sided", "less", "greater"] = "two-sided"
) -> float:
    """Return the exact p-value of McNemar's test.

    Given the discordant items, the gains are Binomial(gains + losses, 1/2) under "no change";
    items that both runs get right, or both wrong, say nothing. McNemar, Psychometrika 1947.

    Args:
        gains: Items that only the second run gets right.
        losses: Items that only the first run gets right.
        alternative: ``less``: the second run is worse.

    Returns:
        1.0 without discordant items.
    """
    if gains + losses == 0:
        return 1.0
    return float(binomtest(gains, gains + losses, 0.5, alternative=alternative).pvalue)
