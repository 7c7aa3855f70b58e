"""The change of one metric between two runs: pairing, test and detectable difference.

`compare` and `gate` both measure here, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gks_eval.evidence.averages import group_weights
from gks_eval.evidence.pairing import Pairing, comparability_faults, pair_items
from gks_eval.evidence.samples import Item
from gks_eval.evidence.scores import Scores, alike
from gks_eval.evidence.stats.item_score import ItemScore, item_score
from gks_eval.evidence.stats.paired_test import CountTest, FlipTest, paired_test
from gks_eval.evidence.stats.power import detectable_difference, pairs_to_show
from gks_eval.evidence.stats.sign_flips import DRAWS
from gks_eval.evidence.stats.streams import Floats

__all__ = [
    "Changes",
    "Measurement",
    "Pair",
    "linked",
    "measure_group",
    "measure_task",
    "pair",
]


@dataclass(frozen=True, slots=True)
class Changes:
    """Second run minus first, item by item.

    Attributes:
        values: Differences, (pairs,); their mean is the change of the metric.
        binary: Whether both runs' scores are all 0 or 1.
        pairing: Which items were paired.
        by_item: Differences of the items' own scores, (pairs,). They differ from `values` if the
            metric is not a mean, such as a perplexity.
        unit: Whether both runs' scores lie between 0 and 1.
        clusters: A label per pair, equal for linked items of any task; empty if none are linked.
    """

    values: Floats
    binary: bool
    pairing: Pairing
    by_item: Floats
    unit: bool = True
    clusters: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Return the number of pairs."""
        return self.values.size

    @property
    def gains(self) -> int:
        """Return how many items score higher in the second run."""
        return int(np.count_nonzero(self.by_item > 0))

    @property
    def losses(self) -> int:
        """Return how many items score lower in the second run."""
        return int(np.count_nonzero(self.by_item < 0))

    def changed(self) -> list[tuple[Item, bool]]:
        """Return the first run's items that changed, each with whether it is a gain."""
        return [
            (first, change > 0)
            for (first, _), change in zip(self.pairing.pairs, self.by_item, strict=True)
            if change
        ]

    def times(self, sign: float) -> Changes:
        """Return the changes times `sign`, which is -1.0 if a lower metric is better."""
        return replace(self, values=sign * self.values, by_item=sign * self.by_item)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs' scores of one metric of one task.

    Attributes:
        first: The first run's scores; accuracies only if the second run's are accuracies too.
        second: The second run's scores, likewise.
        changes: Item by item; None if a run has no items.
        faults: Why the two runs are not comparable; empty if they are.
    """

    first: Scores
    second: Scores
    changes: Changes | None
    faults: list[str]


def pair(first: Scores, second: Scores) -> Pair:
    """Pair two runs' items of one task, scored by one metric."""
    first, second = alike({"first": first, "second": second}).values()
    if first.items is None or second.items is None:
        return Pair(first, second, None, comparability_faults(first.task, second.task, None))
    pairing = pair_items(first.items, second.items)
    before = [item for item, _ in pairing.pairs]
    after = [item for _, item in pairing.pairs]
    changes = Changes(
        values=second.values_of(after) - first.values_of(before),
        binary=first.binary,  # as in the second, see `alike`
        pairing=pairing,
        by_item=second.by_item(after) - first.by_item(before),
        unit=first.unit and second.unit,
        clusters=_clusters(first.task.name, pairing),
    )
    return Pair(first, second, changes, comparability_faults(first.task, second.task, pairing))


def _clusters(task: str, pairing: Pairing) -> tuple[str, ...]:
    """Return a label per pair, or none if neither run links items."""
    # Results from before a task declared its links are compared with later ones.
    found = [first.cluster or second.cluster for first, second in pairing.pairs]
    if not any(found):
        return ()
    return tuple(
        label or f"{task} {first.key}"
        for label, (first, _) in zip(found, pairing.pairs, strict=True)
    )


def linked(clusters: Sequence[Sequence[str]], sizes: Sequence[int]) -> list[Sequence[str]] | None:
    """Return a label per item of every task, or None if no two items share one.

    Args:
        clusters: Per task a label per item, or nothing for a task without links.
        sizes: Items per task.
    """
    labels = [
        own or [f"{task} {place}" for place in range(size)]
        for task, (own, size) in enumerate(zip(clusters, sizes, strict=True))
    ]
    distinct = {label for own in labels for label in own}
    return None if len(distinct) == sum(sizes) else labels


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured change of a task's metric or of a group's average.

    Attributes:
        change: Second run minus first.
        n: Pairs.
        gains: Items that score higher in the second run.
        losses: Items that score lower in the second run.
        test: Gives p-values and interval.
        binary: Whether all scores are 0 or 1.
        units: Number of values that `variance` refers to: the pairs of a task, 1 for a group's
            average.
        variance: Variance of one such value; for accuracies of a task the share of changed items.
    """

    change: float
    n: int
    gains: int
    losses: int
    test: CountTest | FlipTest | ItemScore
    binary: bool
    units: int
    variance: float

    @property
    def clusters(self) -> int | None:
        """Return the number of clusters, or None if no items are linked."""
        score = self.test
        if not isinstance(score, ItemScore) or score.clusters == score.items:
            return None
        return score.clusters

    @property
    def design_effect(self) -> float | None:
        """Return the design effect, or None if no items are linked or none changed."""
        score = self.test
        return score.design_effect if isinstance(score, ItemScore) and self.clusters else None

    def equal_p(self, margin: float) -> float:
        """Return the p-value of "not equal within a margin": the larger of two one-sided ones.

        Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987 (TOST).
        """
        return max(self.test.shown_p(margin), self.test.less_p(margin))

    def needed(self, tolerance: float, alpha: float) -> int | None:
        """Return how many items show an unchanged candidate to lose less than a tolerance.

        Tasks keep their shares of the items, and links their design effect.
        """
        return pairs_to_show(self.variance * self.n / self.units, tolerance, alpha)

    def detectable(self, alpha: float = 0.05, two_sided: bool = True) -> float | None:
        """Return the smallest change that is detected with 80% power, or None if none is."""
        found = detectable_difference(
            self.units,
            self.variance,
            alpha,
            two_sided=two_sided,
            binary=isinstance(self.test, CountTest),
            largest=1.0 if self.binary else math.inf,
        )
        return None if math.isnan(found) else found


def measure_task(
    changes: Changes, draws: int = DRAWS, seed: int = 0, mid: bool = False
) -> Measurement:
    """Measure the change of a task's metric, on one pair or more.

    With linked items, the test is the item score.
    """
    if linked([changes.clusters], [changes.n]):
        return measure_group({"": changes}, weighted=False)
    gains, losses, n = changes.gains, changes.losses, changes.n
    return Measurement(
        change=float(changes.values.mean()),
        n=n,
        gains=gains,
        losses=losses,
        test=paired_test(changes.values, changes.binary, draws, seed, mid, changes.unit),
        binary=changes.binary,
        units=n,
        variance=(gains + losses) / n if changes.binary else float(changes.values.var()),
    )


def measure_group(tasks: Mapping[str, Changes], weighted: bool) -> Measurement:
    """Measure the change of a group's average by the item score.

    Args:
        tasks: Changes by task.
        weighted: Whether the average weights tasks by size.
    """
    parts = list(tasks.values())
    weights = group_weights([part.n for part in parts], weighted)
    test = item_score(
        [part.values for part in parts],
        weights,
        linked([part.clusters for part in parts], [part.n for part in parts]),
        unit=all(part.unit for part in parts),
    )
    return Measurement(
        change=test.change,
        n=sum(part.n for part in parts),
        gains=sum(part.gains for part in parts),
        losses=sum(part.losses for part in parts),
        test=test,
        binary=all(part.binary for part in parts),
        units=1,
        variance=test.variance,
    )
