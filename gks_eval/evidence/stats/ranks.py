"""Ranks of many runs on the same items, with ties where a test does not separate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.item_score import FEW, cluster_codes, exact_p
from gks_eval.evidence.stats.streams import Floats

__all__ = ["pairwise", "ranks"]


def pairwise(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    clusters: Sequence[Sequence[str]] | None = None,
) -> tuple[Floats, Floats]:
    """Compare the weighted mean over tasks of every two runs by the item score.

    Args:
        tasks: Per task the scores, (runs, n_t).
        weights: Per task, summing to 1.
        clusters: As for `item_score`.

    Returns:
        z of each row's run less each column's, and the two-sided p-values, both (runs, runs).
    """
    parts = np.concatenate(
        [scores * (w / scores.shape[1]) for scores, w in zip(tasks, weights, strict=True)], axis=1
    )
    if clusters is not None:
        codes = cluster_codes(clusters)
        parts = np.array([np.bincount(codes, row) for row in parts])
    rounding = 1e-12 * np.abs(parts).max(axis=0)
    runs = len(parts)
    z, p = np.zeros((runs, runs)), np.ones((runs, runs))
    for run in range(runs):
        sums = parts[run] - parts
        sums[np.abs(sums) <= rounding] = 0.0
        spread = np.sqrt((sums**2).sum(axis=1))
        z[run] = sums.sum(axis=1) / np.where(spread, spread, 1.0)
        p[run] = 2.0 * norm.sf(np.abs(z[run]))
        for other in np.flatnonzero(np.count_nonzero(sums, axis=1) < FEW):
            p[run, other] = min(1.0, 2.0 * exact_p(sums[other]), 2.0 * exact_p(-sums[other]))
    return z, p


def ranks(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    alpha: float = 0.05,
    clusters: Sequence[Sequence[str]] | None = None,
) -> list[int]:
    """Rank runs: 1 plus the number of runs that are significantly better.

    All pairs are tested two-sided by `pairwise`, with Holm's correction over all pairs. A run that
    is better than another is better than every run below that one, too. So a run that is better
    than another always has the smaller rank.

    Args:
        tasks: Per task the scores, (runs, n_t); larger is better.
        weights: Per task, summing to 1.
        alpha: Level of all tests together.
        clusters: As for `item_score`.
    """
    z, p = pairwise(tasks, weights, clusters)
    first, second = np.triu_indices(len(z), 1)
    better = np.zeros(z.shape, dtype=bool)
    for i, j, adjusted in zip(first, second, holm([*p[first, second]]), strict=True):
        if adjusted < alpha:
            better[(i, j) if z[i, j] > 0 else (j, i)] = True
    for middle in range(len(z)):  # Warshall's transitive closure
        better |= np.outer(better[:, middle], better[middle])
    return [1 + int(count) for count in better.sum(axis=0)]
