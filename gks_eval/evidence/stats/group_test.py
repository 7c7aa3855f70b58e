"""The average of a group of tasks: its change's test and interval, or why there is none."""

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
        average: Of the tasks' means.
        drawn: Resampled averages, (draws,).
        changed: Items whose value is not 0.
        problem: Why there is no test, as half a sentence; empty where there is one.
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
        """Return the one-sided p-value that speaks for an average below `difference`, 0 or less."""
        if self.problem:
            return None
        return bootstrap_p(self.average, self.drawn, -difference, changed=self.changed)

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the percentile interval; None where nothing says how the items vary."""
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

    Resampling within tasks cannot see how the items of a task vary if there is one item only, or if
    all of them are alike. The first adds no variance at all where it should add most; if it is so
    in all tasks, everything would look certain. Neither is tested.

    Args:
        tasks: By name each task's values (or paired differences), (n_t,).
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
