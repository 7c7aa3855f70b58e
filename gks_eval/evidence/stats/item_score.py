r"""The item score: test and interval of a weighted mean of paired changes, with linked items.

A group's average weighs the n_t items of task t by :math:`a_i = w_t / n_t`. With the paired changes
d_i and clusters c of linked items (by default every item is its own cluster),

.. math:: S_c = \sum_{i \in c} a_i (d_i + \text{tol}), \quad A_c = \sum_{i \in c} a_i, \quad
    z = \sum_c S_c \Big/ \sqrt{\sum_c S_c^2}.

The variance is that of the hypothesis, so it needs no second item per task. With equal weights, no
clusters and tol = 0, z is McNemar's without a continuity correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom, norm

from gks_eval.evidence.stats import sign_flips
from gks_eval.evidence.stats.streams import Floats

__all__ = ["FEW", "ItemScore", "cluster_codes", "exact_p", "item_score"]

# With fewer changed clusters the normal score is too sure.
FEW: Final = 10
# Sums of a cluster that differ from 0 only by rounding are 0.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The clusters' sums, from which every p-value and bound follows.

    Attributes:
        sums: S_c at tolerance 0, (clusters,); their sum is the change of the mean.
        shares: A_c, (clusters,); they sum to 1.
        squares: Sum of (a_i d_i)^2 over items.
        items: Number of items.
        unit: Whether an item's change is at most 1 in size, as for scores between 0 and 1.
    """

    sums: Floats
    shares: Floats
    squares: float
    items: int
    unit: bool = True

    @property
    def change(self) -> float:
        """Return the change of the mean."""
        return math.fsum(self.sums)

    @property
    def clusters(self) -> int:
        """Return the number of clusters."""
        return self.sums.size

    @property
    def worse(self) -> int:
        """Return the number of clusters with a negative sum."""
        return int(np.count_nonzero(self.sums < 0.0))

    @property
    def changed(self) -> int:
        """Return the number of clusters whose sum is not 0."""
        return int(np.count_nonzero(self.sums))

    @property
    def variance(self) -> float:
        r"""Return the variance of the change, :math:`\sum_c (S_c - d A_c)^2`."""
        return float(np.sum((self.sums - self.change * self.shares) ** 2))

    @property
    def design_effect(self) -> float | None:
        r"""Return :math:`\sum_c S_c^2 / \sum_i (a_i d_i)^2`: above 1 if linked items change alike.

        None if no item changed.
        """
        return float(np.sum(self.sums**2)) / self.squares if self.squares else None

    def turned(self) -> ItemScore:
        """Return the same with the two runs swapped."""
        return ItemScore(-self.sums, self.shares, self.squares, self.items, self.unit)

    def z(self, tolerance: float = 0.0) -> float:
        """Return the score of a change of -tolerance; 0 if nothing changed at tolerance 0."""
        sums = self.sums + tolerance * self.shares
        spread = math.sqrt(float(np.sum(sums**2)))
        return (self.change + tolerance) / spread if spread else 0.0

    def two_sided_p(self) -> float:
        r"""Return :math:`2 \Phi(-|z|)` for "no difference"; exact with few changed clusters."""
        if self.changed < FEW:
            return min(1.0, 2.0 * exact_p(self.sums), 2.0 * exact_p(-self.sums))
        return float(2.0 * norm.sf(abs(self.z())))

    def less_p(self, difference: float = 0.0) -> float:
        r"""Return the p-value of a regression: of a true change below `difference`.

        It is :math:`\Phi(z)` at tol = -difference. With fewer than `FEW` changed clusters it is no
        less than the exact p-value of a change below 0. A positive `difference` is that of
        `shown_p` with the runs swapped.
        """
        if difference > 0.0:
            return self.turned().shown_p(difference)
        if self.changed < FEW and difference == 0.0:
            return exact_p(self.sums)
        p = float(norm.cdf(self.z(-difference)))
        return max(p, exact_p(self.sums)) if self.changed < FEW else p

    def shown_p(self, tolerance: float) -> float:
        r"""Return the p-value of "shown": of a true change above -tolerance (non-inferiority).

        It is :math:`1 - \Phi(z)`. With fewer than `FEW` changed clusters it is the smallest level
        at which `worst` lies above -tolerance.
        """
        if self.changed >= FEW:
            return float(norm.sf(self.z(tolerance)))
        if not self.unit or tolerance <= 0.0:
            return 1.0
        return float(binom.cdf(self.worse, self.clusters, min(1.0, tolerance / self._heaviest())))

    def worst(self, alpha: float) -> float | None:
        r"""Return the one-sided lower bound of the change at level alpha.

        The largest change at most d that the score does not reject. With fewer than `FEW` changed
        clusters it is :math:`-C \max_c A_c\, u`, where u is the Clopper-Pearson upper bound of the
        share of worsened clusters among all C. With equal weights the factor is 1. With other
        weights, and shares that differ between clusters, the bound is conservative (Hoeffding,
        Annals of Mathematical Statistics 1956). None if there is no bound.
        """
        if self.changed >= FEW:
            interval = self._inverted(float(norm.isf(alpha)))
            return interval[0] if interval else None
        if not self.unit:
            return None
        if self.worse == self.clusters:
            return -1.0
        share = float(beta.isf(alpha, self.worse + 1, self.clusters - self.worse))
        return max(-1.0, -self._heaviest() * share)

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        r"""Return the changes :math:`\delta` that the two-sided test does not reject.

        All :math:`\delta` with :math:`(d - \delta)^2 \le q^2 \sum_c (S_c - \delta A_c)^2`, q the
        two-sided normal quantile; [-1, 1] if :math:`q^2 \sum_c A_c^2 \ge 1`. With fewer than `FEW`
        changed clusters both ends are bounds by `worst`. In both cases the test of 0 decides on
        which side of 0 they lie. It excludes 0 exactly if `two_sided_p` is below 1 - confidence.
        None if all items changed alike, or if there is no bound.
        """
        alpha = round(1.0 - confidence, 12)
        score = self._inverted(float(norm.isf(alpha / 2.0)))
        if self.changed >= FEW:
            return score and self._on_its_side(*score, score, alpha)
        low, best = self.worst(alpha / 2.0), self.turned().worst(alpha / 2.0)
        if low is None or best is None:
            return None
        return self._on_its_side(low, -best, score, alpha)

    def _on_its_side(
        self, low: float, high: float, score: tuple[float, float] | None, alpha: float
    ) -> tuple[float, float]:
        """Return the interval without the changes on the other side of 0, if the test rejects 0."""
        if self.two_sided_p() < alpha:
            tiny = math.ulp(0.0)
            if self.change < 0.0:
                high = min(score[1] if score else 0.0, -tiny)
            else:
                low = max(score[0] if score else 0.0, tiny)
        return low, high

    def _heaviest(self) -> float:
        """Return C times the largest share, 1 with equal weights."""
        return self.clusters * float(self.shares.max())

    def _inverted(self, q: float) -> tuple[float, float] | None:
        """Return the roots of the quadratic in delta; None without spread or bound."""
        d = self.change
        a = 1.0 - q * q * float(np.sum(self.shares**2))
        if a <= 0.0:
            return (-1.0, 1.0) if self.unit else None
        spread = self.variance
        if math.sqrt(spread) <= _ROUNDING * abs(d):
            return None
        # In x = delta - d: a x^2 - 2 q^2 e x - ... with e the covariance of spread and share.
        e = -q * q * float(np.sum((self.sums - d * self.shares) * self.shares))
        root = math.sqrt(e * e + a * q * q * spread)
        low, high = d + (e - root) / a, d + (e + root) / a
        return (max(-1.0, low), min(1.0, high)) if self.unit else (low, high)


def item_score(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    clusters: Sequence[Sequence[str]] | None = None,
    unit: bool = True,
) -> ItemScore:
    """Return the item score of paired changes.

    Args:
        tasks: Per task the paired changes, second run minus first, (n_t,).
        weights: Per task, summing to 1.
        clusters: Per task a label per item, (n_t,); items of any task with the same label are
            linked. None if no items are linked.
        unit: Whether an item's change is at most 1 in size.

    Raises:
        ValueError: A task has no items.
    """
    if not tasks or not all(values.size for values in tasks):
        raise ValueError("an item score needs at least one item in each task")
    shares = np.concatenate(
        [np.full(values.size, w / values.size) for values, w in zip(tasks, weights, strict=True)]
    )
    parts = shares * np.concatenate(tasks)
    squares, items = float(np.sum(parts**2)), parts.size
    if clusters is not None:
        codes = cluster_codes(clusters)
        sizes = np.bincount(codes, np.abs(parts))
        parts, shares = np.bincount(codes, parts), np.bincount(codes, shares)
        parts[np.abs(parts) <= _ROUNDING * sizes] = 0.0
    return ItemScore(parts, shares, squares, items, unit)


def cluster_codes(clusters: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """Return a number per item of all tasks, equal for equal labels, from 0 without gaps."""
    numbers: dict[str, int] = {}
    labels = (label for task in clusters for label in task)
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def exact_p(sums: Floats, draws: int = sign_flips.DRAWS, seed: int = 0) -> float:
    """Return the exact one-sided p-value of a change below 0, by flipping the clusters' signs.

    If no cluster differs, each sum is as likely to be positive as negative. All sign patterns count
    if there are few, see `sign_flips.subset_means`; otherwise `draws` random ones.
    """
    changed = sums[sums != 0.0]
    if not changed.size:
        return 1.0
    return sign_flips.less_p(sign_flips.subset_means(changed, draws, seed))
