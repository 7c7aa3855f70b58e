"""Two runs' scores of one task, item against item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gks_eval.evidence.pairing import Pairing, pair_items
from gks_eval.evidence.samples import Item
from gks_eval.evidence.scores import Scores
from gks_eval.evidence.stats.streams import Floats

__all__ = ["Changes", "paired_changes"]


@dataclass(frozen=True, slots=True)
class Changes:
    """Second run less first, item by item.

    Attributes:
        values: Differences, (pairs,); their mean is the metric's.
        binary: Whether both runs' scores are all 0 or 1.
        pairing: The account of the pairing.
        by_item: Differences of what each item scored by itself, (pairs,), where that is not
            `values`: the metric is then no mean of scores.
    """

    values: Floats
    binary: bool
    pairing: Pairing
    by_item: Floats | None = None

    @property
    def n(self) -> int:
        """Return the number of pairs."""
        return self.values.size

    @property
    def mean(self) -> float:
        """Return the mean difference of one pair or more."""
        return float(self.values.mean())

    @property
    def _by_item(self) -> Floats:
        return self.values if self.by_item is None else self.by_item

    @property
    def gains(self) -> int:
        """Return how many items score higher in the second run."""
        return int(np.count_nonzero(self._by_item > 0))

    @property
    def losses(self) -> int:
        """Return how many items score lower in the second run."""
        return int(np.count_nonzero(self._by_item < 0))

    def changed(self) -> list[tuple[Item, bool]]:
        """Return the first run's items that changed, each with whether the second gained it."""
        return [
            (first, change > 0)
            for (first, _), change in zip(self.pairing.pairs, self._by_item, strict=True)
            if change
        ]


def paired_changes(first: Scores, second: Scores) -> Changes | None:
    """Pair two runs' items, scored by one metric; None where one of them has none."""
    if first.items is None or second.items is None:
        return None
    pairing = pair_items(first.items, second.items)
    before = [item for item, _ in pairing.pairs]
    after = [item for _, item in pairing.pairs]
    return Changes(
        values=second.values_of(after) - first.values_of(before),
        binary=first.binary and second.binary,
        pairing=pairing,
        by_item=second.by_item(after) - first.by_item(before),
    )
