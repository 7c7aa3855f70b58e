"""Test and interval of a group's average, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gks_eval.evidence.stats.bootstrap import (
    DRAWS,
    bootstrap_interval,
    bootstrap_p,
    group_means,
)
from gks_eval.evidence.stats.streams import Floats

__all__ = ["GroupTest", "group_test"]


@dataclass(frozen=True, slots=True)
class GroupTest:
    """A group's average with its bootstrap.

    Attributes:
        average: Average of the tasks' means.
        drawn: Resampled averages, (draws,).
        changed: Number of items whose value is not 0.
        problem: Why there is no test; empty if there is one.
    """

    average: float
    drawn: Floats
    changed: int
    problem: str

    def two_sided_p(self) -> float | None:
        """Return the p-value of "no difference"."""
        if self.problem:
            return None
        return bootstrap_p(self.average, self.drawn, changed=self.changed)

    def less_p(self, difference: float = 0.0) -> float | None:
        """Return the one-sided p-value for an average below `difference`, which is 0 or less."""
        if self.problem:
            return None
        return bootstrap_p(self.average, self.drawn, -difference, changed=self.changed)

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the percentile interval, or None if the items show no variation."""
        if self.problem or _alike(self.drawn):
            return None
        return bootstrap_interval(self.drawn, confidence)


def group_test(
    tasks: Mapping[str, Sequence[float] | Floats],
    weights: Sequence[float],
    draws: int = DRAWS,
    seed: int = 0,
) -> GroupTest:
    """Return the test of a group's average.

    Resampling within a task shows no variation if the task has a single item, or if all its items
    are equal. A single item would add no variance where it should add most. If the items of every
    task are equal, the average would look certain. There is no test in either case.

    Args:
        tasks: Values (or paired differences) by task, (n_t,).
        weights: Per task, summing to 1.
        draws: Number of resamples.
        seed: See `group_means`.
    """
    average, drawn = group_means(list(tasks.values()), weights, draws, seed)
    changed = sum(int(np.count_nonzero(values)) for values in tasks.values())
    lone = [name for name, values in tasks.items() if len(values) == 1]
    problem = ""
    if lone:
        more = f" and {len(lone) - 3} more" if len(lone) > 3 else ""
        which = "every task" if len(lone) == len(tasks) else f"{', '.join(lone[:3])}{more}"
        have = "have" if len(lone) < len(tasks) and len(lone) > 1 else "has"
        problem = f"{which} {have} a single item, which does not show how items vary"
    elif changed and _alike(drawn):
        problem = "all items of a task changed alike, which does not show how items vary"
    return GroupTest(average, drawn, changed, problem)


def _alike(drawn: Floats) -> bool:
    return bool(np.ptp(drawn) <= 1e-12 * np.abs(drawn).max())
