r"""A paired change that was measured with several seeds: both seeds and items are samples.

With S seeds, let :math:`D_s` be the change of the mean under seed s, :math:`S_{sc}` its part from
cluster c and :math:`A_c` the cluster's weight, as in `item_score`; a bar is a mean over seeds. The
change is :math:`\bar D`, and

.. math::
    V_\text{seeds} = \frac{\sum_s (D_s - \bar D)^2}{S (S - 1)}, \quad
    V_\text{items} = \sum_c (\bar S_c - \bar D A_c)^2, \quad
    V_\text{both} = \frac{\sum_{s,c} (S_{sc} - \bar S_c - (D_s - \bar D) A_c)^2}{S (S - 1)},

.. math::
    V = \max(V_\text{seeds}, V_\text{items}, V_\text{seeds} + V_\text{items} - V_\text{both}).

The first two count the noise of single items under single seeds, :math:`V_\text{both}`, once each
(Cameron, Gelbach and Miller, Journal of Business & Economic Statistics 2011). :math:`\bar D /
\sqrt V` is held against t with S - 1 degrees of freedom, because the few seeds limit what is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from gks_eval.evidence.stats.item_score import cluster_codes, item_score
from gks_eval.evidence.stats.streams import Floats

__all__ = ["Replicated", "replicated"]


@dataclass(frozen=True, slots=True)
class Replicated:
    """A change over seeds.

    Attributes:
        by_seed: The change under each seed, (S,).
        seeds_variance: Of the mean change, from seeds.
        items_variance: Of the mean change, from items.
        variance: Of the mean change, from both.
        seeds_p: Two-sided p-value of t over the seeds' changes, with the items taken as fixed.
        items_p: Two-sided p-value of the item score, with these seeds taken as fixed.
        unit: Whether an item's change is at most 1 in size.
    """

    by_seed: Floats
    seeds_variance: float
    items_variance: float
    variance: float
    seeds_p: float
    items_p: float
    unit: bool

    @property
    def seeds(self) -> int:
        """Return S."""
        return self.by_seed.size

    @property
    def change(self) -> float:
        """Return the mean change."""
        return float(self.by_seed.mean())

    def p(self) -> float:
        """Return the two-sided p-value of "the methods do not differ"; 1 if nothing varies."""
        return _two_sided(self.change, self.variance, self.seeds - 1)

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the interval of the change; None if nothing varies."""
        if not self.variance:
            return None
        half = float(t.isf((1.0 - confidence) / 2.0, self.seeds - 1)) * math.sqrt(self.variance)
        low, high = self.change - half, self.change + half
        return (max(-1.0, low), min(1.0, high)) if self.unit else (low, high)

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float | None:
        r"""Return the change that is detected with the given power, or None if none is.

        It is :math:`(t_{\alpha/2} + t_{1 - \text{power}}) \sqrt V`, two-sided.
        """
        df = self.seeds - 1
        found = float(t.isf(alpha / 2.0, df) + t.isf(1.0 - power, df)) * math.sqrt(self.variance)
        return found if found and (found <= 1.0 or not self.unit) else None


def replicated(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    clusters: Sequence[Sequence[str]] | None = None,
    unit: bool = True,
) -> Replicated:
    """Return the change over seeds.

    Args:
        tasks: Per task the paired changes of the same items under every seed, (S, n_t).
        weights: Per task, summing to 1.
        clusters: As for `item_score`.
        unit: Whether an item's change is at most 1 in size.

    Raises:
        ValueError: Fewer than two seeds, or a task has no items.
    """
    seeds = tasks[0].shape[0]
    if seeds < 2:
        raise ValueError("a variance over seeds needs at least two seeds")
    mean = item_score([values.mean(axis=0) for values in tasks], weights, clusters, unit)
    parts = np.concatenate(
        [w / values.shape[1] * values for values, w in zip(tasks, weights, strict=True)], axis=1
    )
    if clusters is not None:
        codes = cluster_codes(clusters)
        parts = np.stack([np.bincount(codes, row) for row in parts])
    by_seed = parts.sum(axis=1)
    change = float(by_seed.mean())
    # Equal changes differ by rounding.
    around = by_seed - change
    around[np.abs(around) <= 1e-12 * np.abs(parts).sum(axis=1)] = 0.0
    pairs = seeds * (seeds - 1)
    from_seeds = float(np.sum(around**2)) / pairs
    rest = parts - parts.mean(axis=0) - np.outer(around, mean.shares)
    both = float(np.sum(rest**2)) / pairs
    from_items = mean.variance
    variance = max(from_seeds, from_items, from_seeds + from_items - both)
    return Replicated(
        by_seed=by_seed,
        seeds_variance=from_seeds,
        items_variance=from_items,
        variance=variance,
        seeds_p=_two_sided(change, from_seeds, seeds - 1),
        items_p=mean.two_sided_p(),
        unit=unit,
    )


def _two_sided(change: float, variance: float, df: int) -> float:
    if not variance:
        # Without spread a change is either none or the same everywhere, which t cannot judge.
        return 1.0
    return float(2.0 * t.sf(abs(change) / math.sqrt(variance), df))
