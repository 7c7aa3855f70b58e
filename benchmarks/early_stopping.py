"""False alarms, power and items read of a gate that stops early, on simulated changes of two runs.

``python -m benchmarks.early_stopping --repeats 4000`` prints the table of ``docs/evidence.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from gks_eval.evidence.looks import Reading, Rules, reading, standings
from gks_eval.evidence.stats.item_score import FEW, ItemScore, exact_p
from gks_eval.evidence.stats.spending import LOOKS
from gks_eval.evidence.stats.streams import Floats

__all__ = ["CASES", "Case", "Rates", "counted", "rates"]


@dataclass(frozen=True)
class Case:
    """Tasks of one size, whose items change independently.

    Attributes:
        n: Items per task.
        tasks: Number of tasks.
        discordance: Share of items that change.
        tolerance: Tolerated drop.
        drop: True drop of the first task; the others do not change on average.
        linked: Correlation of the changes of an item's translations. If it is not 0, the tasks are
            languages with the same questions, and their average is checked as well.
    """

    n: int
    tasks: int
    discordance: float
    tolerance: float = 0.0
    drop: float = 0.0
    linked: float = 0.0

    @property
    def checks(self) -> int:
        """Return the number of checks."""
        return self.tasks + bool(self.linked)


@dataclass(frozen=True)
class Rates:
    """What a gate does on average.

    Attributes:
        regression: Share of repeats with a regression.
        shown: Share of repeats in which all tasks are shown to be within the tolerance.
        read: Share of the items read.
        regression_at_end: Share of repeats with a regression if all items are read at once.
        shown_at_end: Share shown if all items are read at once.
    """

    regression: float
    shown: float
    read: float
    regression_at_end: float
    shown_at_end: float


def counted(gains: int, losses: int, n: int, tolerance: float) -> Reading:
    """Return the reading of a task of zeros and ones without links, from its counts."""
    change, changed = (gains - losses) / n + tolerance, gains + losses
    squares = gains * (1 + tolerance) ** 2 + losses * (1 - tolerance) ** 2
    squares += (n - changed) * tolerance**2
    z = n * change / math.sqrt(squares) if squares else 0.0
    p, shown = float(ndtr(z)), float(ndtr(-z))
    if changed < FEW:
        exact = exact_p(np.repeat([1.0, -1.0], [gains, losses]))
        p = max(p, exact) if tolerance else exact
        shown = float(binom.cdf(losses, n, tolerance)) if tolerance else 1.0
    return Reading(tasks=(), n=n, clusters=n, changed=changed, z=z, p=p, p_shown=shown)


def draw(case: Case, rng: np.random.Generator) -> Iterator[list[Reading]]:
    """Yield the readings of every check, look by look."""
    ends = np.ceil(np.array(LOOKS) * case.n - 1e-9).astype(int)
    drops = np.array([case.drop, *[0.0] * (case.tasks - 1)])[:, None]
    lost, gained = (case.discordance + drops) / 2.0, (case.discordance - drops) / 2.0
    if case.linked:
        # With probability sqrt(r) an item takes the change of its question, else its own.
        common = rng.random((1, case.n))
        own = rng.random((case.tasks, case.n))
        u = np.where(rng.random(own.shape) < case.linked**0.5, common, own)
        changes = (u < gained).astype(float) - (u > 1.0 - lost)
        for end in ends:
            read = changes[:, :end]
            found = [_score(task / end, case.tolerance) for task in read]
            yield [*found, _score(read.mean(axis=0) / end, case.tolerance)]
        return
    chances = np.concatenate([gained, lost, 1.0 - gained - lost], axis=1)
    parts = rng.multinomial(np.diff([0, *ends])[:, None], chances[None])  # (looks, tasks, 3)
    for end, counts in zip(ends, parts.cumsum(axis=0), strict=True):
        yield [counted(int(g), int(b), int(end), case.tolerance) for g, b, _ in counts]


def _score(sums: Floats, tolerance: float) -> Reading:
    score = ItemScore(sums, np.full(sums.size, 1.0 / sums.size), 0.0, sums.size)
    return reading(score, tolerance)


def rates(case: Case, repeats: int, seed: int, alpha: float = 0.05) -> Rates:
    """Simulate a gate with looks, and with all items at once."""
    rng = np.random.default_rng(seed)
    rules = [Rules(alpha)] * case.checks
    sums = np.zeros(5)
    for _ in range(repeats):
        looks = list(draw(case, rng))
        found = standings(LOOKS, looks, rules)
        lost = [one.look for one in found if one.state == "regression"]
        end = min(lost, default=len(LOOKS) - 1)
        read = [LOOKS[min(end, one.look) if one.state == "shown" else end] for one in found]
        last = looks[-1]
        sums += (
            bool(lost),
            not lost and all(one.state == "shown" for one in found),
            sum(read[: case.tasks]) / case.tasks,
            min(one.p for one in last) <= alpha / case.checks,
            all(one.p_shown <= alpha for one in last),
        )
    return Rates(*(sums / repeats))


CASES: Final = (
    # unchanged, at a tolerance of 0
    *(Case(n, 4, share) for n in (1000, 10_000) for share in (0.02, 0.05, 0.15)),
    *(Case(1000, 3, 0.15, linked=r) for r in (0.3, 0.6)),
    # clear regressions
    *(Case(n, 4, share, drop=0.05) for n in (1000, 10_000) for share in (0.06, 0.15)),
    *(Case(n, 4, 0.02, drop=0.02) for n in (1000, 10_000)),
    # near the boundary
    Case(10_000, 1, 0.15, drop=0.01),
    Case(1000, 1, 0.05, drop=0.02),
    # unchanged, to be shown
    *(Case(n, 1, 0.05, tol) for n in (1000, 10_000) for tol in (0.01, 0.02)),
    *(Case(n, 1, 0.15, tol) for n in (1000, 10_000) for tol in (0.01, 0.02)),
    # a drop of the tolerance must not be shown
    *(Case(n, 1, 0.05, 0.02, 0.02) for n in (1000, 10_000)),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    heads = ("items per task", "tasks", "linked", "change", "tolerance", "drop of the first")
    outcomes = ("regression", "shown", "items read", "regression at once", "shown at once")
    print(f"| {' | '.join((*heads, *outcomes))} |")
    print(f"|{' --: |' * (len(heads) + len(outcomes))}")
    for case in CASES:
        found = rates(case, words.repeats, words.seed)
        shares = case.discordance, case.tolerance, case.drop
        numbers = [found.regression, found.shown, found.read]
        numbers += [found.regression_at_end, found.shown_at_end]
        cells = [
            f"{case.n:,}",
            str(case.tasks),
            f"{case.linked or '–'}",
            *(f"{100 * share:g}" for share in shares),
        ]
        cells += [f"{100 * number:.1f}" for number in numbers]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
