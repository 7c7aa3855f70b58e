"""False alarms, coverage and power of the item score on simulated changes of two runs.

``python -m benchmarks.item_score --repeats 10000`` prints the table of ``docs/evidence.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gks_eval.evidence.stats.item_score import ItemScore, item_score

__all__ = ["DESIGNS", "Design", "Rates", "rates"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Tasks whose items change, some of them together.

    Attributes:
        sizes: Items per task, (T,).
        discordance: Per task the share of items that change, (T,).
        clusters: Per task a number per item; items of the same number are linked.
        correlation: Between the changes of linked items.
        weights: Per task; None for equal weights of the tasks.
    """

    sizes: Sequence[int]
    discordance: Sequence[float]
    clusters: Sequence[Sequence[int]]
    correlation: float = 0.0
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Rates:
    """Shares of repeats.

    Attributes:
        alarm: Unchanged candidates that fail a one-sided test at 5%.
        covers: 95% intervals that contain the true change of 0.
        shown: Candidates with a true drop of the tolerance that are shown to be within it.
        effect: Mean design effect.
    """

    alarm: float
    covers: float
    shown: float
    effect: float


def _lone(sizes: Sequence[int]) -> list[list[int]]:
    return [list(range(end - n, end)) for n, end in zip(sizes, np.cumsum(sizes), strict=True)]


def _small_tasks(more: float) -> Design:
    sizes = [1 + t % 10 for t in range(57)]
    shares = [more if n <= 3 else 0.15 for n in sizes]
    return Design(sizes, shares, _lone(sizes))


def _blocks(count: int, correlation: float) -> Design:
    sizes = [3 + c % 3 for c in range(count)]
    ids = [c for c, n in enumerate(sizes) for _ in range(n)]
    return Design([len(ids)], [0.15], [ids], correlation)


def _siblings(correlation: float) -> Design:
    return Design([400] * 3, [0.15] * 3, [list(range(400))] * 3, correlation)


DESIGNS: Final[Mapping[str, Design]] = {
    "57 tasks of 1 to 10 items": _small_tasks(0.15),
    "57 tasks, the smallest change more": _small_tasks(0.5),
    "3 tasks of 200, 500 and 2,000 items": Design(
        [200, 500, 2000], [0.15] * 3, _lone([200, 500, 2000])
    ),
    "1 task of 300 items, 2% change": Design([300], [0.02], _lone([300])),
    "tasks of 50 and 400 items, 2% change": Design([50, 400], [0.02] * 2, _lone([50, 400])),
    "400 questions in 3 languages, r = 0": _siblings(0.0),
    "400 questions in 3 languages, r = 0.3": _siblings(0.3),
    "400 questions in 3 languages, r = 0.6": _siblings(0.6),
    "100 clusters of 3 to 5 items, r = 0.6": _blocks(100, 0.6),
}


def draw(design: Design, rng: np.random.Generator, drop: float = 0.0) -> list[Floats]:
    """Return changes of -1, 0 and 1 per task, with the given true drop.

    With probability sqrt(r) an item takes the change of its cluster, else its own: so the changes
    of two linked items have correlation r.
    """
    common = rng.random(1 + max(max(ids) for ids in design.clusters))
    tasks = []
    for n, share, ids in zip(design.sizes, design.discordance, design.clusters, strict=True):
        linked = rng.random(n) < design.correlation**0.5
        u = np.where(linked, common[list(ids)], rng.random(n))
        tasks.append(
            (u < (share - drop) / 2).astype(float) - (u > 1 - (share + drop) / 2).astype(float)
        )
    return tasks


def rates(design: Design, repeats: int, seed: int, linked: bool, tolerance: float = 0.02) -> Rates:
    """Return the rates of a design, with or without its clusters in the test."""
    rng = np.random.default_rng(seed)
    weights = design.weights or [1.0 / len(design.sizes)] * len(design.sizes)
    labels = [[str(c) for c in ids] for ids in design.clusters] if linked else None

    def scored(drop: float) -> ItemScore:
        return item_score(draw(design, rng, drop), weights, labels)

    alarm = covers = shown = 0
    effects = []
    for _ in range(repeats):
        same = scored(0.0)
        alarm += same.less_p() <= 0.05
        low, high = same.interval(0.95) or (-1.0, 1.0)
        covers += low <= 0.0 <= high
        effects.append(same.design_effect or 1.0)
        shown += scored(tolerance).shown_p(tolerance) <= 0.05
    return Rates(alarm / repeats, covers / repeats, shown / repeats, float(np.mean(effects)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    heads = "items", "clusters", "false alarms", "coverage", "drop of 2 passes", "design effect"
    print(f"| {' | '.join(heads)} |")
    print("| --- | --- | --: | --: | --: | --: |")
    for name, design in DESIGNS.items():
        for linked in (False, True) if design.correlation else (False,):
            found = rates(design, words.repeats, words.seed, linked)
            numbers = (100 * found.alarm, 100 * found.covers, 100 * found.shown)
            cells = [name, "used" if linked else "none" if not design.correlation else "ignored"]
            cells += [*(f"{number:.1f}" for number in numbers), f"{found.effect:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
