"""The test of paired changes: of counts if every score is 0 or 1, otherwise of values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gks_eval.evidence.stats import paired_counts, sign_flips
from gks_eval.evidence.stats.item_score import FEW, ItemScore, item_score
from gks_eval.evidence.stats.streams import Floats

__all__ = ["CountTest", "FlipTest", "paired_test"]


@dataclass(frozen=True, slots=True)
class CountTest:
    """The test of two paired accuracies, see `paired_counts`; `mid` takes the mid-p."""

    gains: int
    losses: int
    n: int
    mid: bool = False

    def two_sided_p(self) -> float:
        """Return the p-value of "no difference": McNemar's exact test.

        Under "no difference" gains are Binomial(gains + losses, 1/2); unchanged items carry no
        information. McNemar, Psychometrika 1947.
        """
        if self.mid:
            return 2.0 * min(self.less_p(), self.shown_p(0.0))
        from statsmodels.stats.contingency_tables import mcnemar

        table = [[0, self.gains], [self.losses, 0]]  # only discordant items count
        return float(mcnemar(table, exact=True).pvalue)

    def less_p(self, difference: float = 0.0) -> float:
        """Return the one-sided p-value for a change below `difference`."""
        return paired_counts.less_p(self.gains, self.losses, self.n, difference, self.mid)

    def shown_p(self, tolerance: float) -> float:
        """Return the one-sided p-value for a change above -`tolerance`."""
        return paired_counts.less_p(self.losses, self.gains, self.n, tolerance, self.mid)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the changes that the test does not reject."""
        return paired_counts.paired_interval(self.gains, self.losses, self.n, confidence, self.mid)


@dataclass(frozen=True, slots=True)
class FlipTest:
    """The test of two paired means, see `sign_flips`.

    Attributes:
        means: As `subset_means` gives them.
        few: The item score of the same changes if fewer than `FEW` items changed, else None. Flips
            take unchanged items for a proof that none changes.
    """

    means: Floats
    few: ItemScore | None = None

    def two_sided_p(self) -> float:
        """Return the p-value of "no difference"."""
        return sign_flips.two_sided_p(self.means)

    def less_p(self, difference: float = 0.0) -> float:
        """Return the one-sided p-value for a change below `difference`."""
        return sign_flips.less_p(self.means, difference)

    def shown_p(self, tolerance: float) -> float:
        """Return the one-sided p-value for a change above -`tolerance`."""
        p = sign_flips.less_p(-self.means, tolerance)
        return max(p, self.few.shown_p(tolerance)) if self.few else p

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the changes that the test does not reject, or None if they are unbounded.

        They are with few items, or if all items changed equally and so show no variation.
        """
        if np.ptp(self.means) == 0.0:
            return None
        return sign_flips.flip_interval(self.means, confidence)


def paired_test(
    changes: Floats,
    binary: bool,
    draws: int = sign_flips.DRAWS,
    seed: int = 0,
    mid: bool = False,
    unit: bool = True,
) -> CountTest | FlipTest:
    """Return the test of paired changes.

    Args:
        changes: Second run minus first, (n,).
        binary: Whether they are all -1, 0 or 1.
        draws: Random subsets of `FlipTest`.
        seed: Seed of the subsets.
        mid: Whether `CountTest` takes the mid-p.
        unit: Whether an item's change is at most 1 in size.
    """
    if binary:
        gains, losses = int(np.count_nonzero(changes > 0)), int(np.count_nonzero(changes < 0))
        return CountTest(gains, losses, changes.size, mid)
    few = np.count_nonzero(changes) < FEW
    score = item_score([changes], [1.0], unit=unit) if few else None
    return FlipTest(sign_flips.subset_means(changes, draws, seed), score)
