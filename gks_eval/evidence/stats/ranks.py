"""Ranks of many runs on the same items, with ties where a test does not separate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.streams import Floats

__all__ = ["pairwise_z", "ranks"]


def pairwise_z(
    tasks: Sequence[Floats], weights: Sequence[float]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    r"""Compare the weighted mean over tasks of every two runs, paired by item.

    Every task gets two more items, one that the first run wins by 1 and one that it loses by 1, so
    that the variance is not 0 where few items differ. Of the n_t + 2 differences with mean m_t and
    variance v_t, :math:`z = \sum_t w_t m_t / \sqrt{\sum_t w_t^2 v_t / (n_t + 2)}` (Bonett and
    Price, Journal of Educational and Behavioral Statistics 2012, for one task of zeros and ones).
    There are no random draws, so many pairs do not need many of them.

    Args:
        tasks: Per task the scores between 0 and 1, (runs, n_t).
        weights: Per task, summing to 1.

    Returns:
        z of each row's run less each column's, (runs, runs), and how many items differ.
    """
    runs = len(tasks[0])
    mean, variance = np.zeros((runs, runs)), np.zeros((runs, runs))
    changed = np.zeros((runs, runs), dtype=np.int64)
    for scores, weight in zip(tasks, weights, strict=True):
        n = scores.shape[1] + 2
        for run in range(runs):
            differences = scores[run] - scores
            own = differences.sum(axis=1) / n
            spread = ((differences**2).sum(axis=1) + 2.0) / n - own**2
            mean[run] += weight * own
            variance[run] += weight**2 * spread / n
            changed[run] += np.count_nonzero(differences, axis=1)
    return mean / np.sqrt(variance), changed


def ranks(tasks: Sequence[Floats], weights: Sequence[float], alpha: float = 0.05) -> list[int]:
    """Rank runs: 1 plus the number of runs that are significantly better.

    All pairs are tested two-sided by `pairwise_z`, with Holm's correction over all pairs. As the
    sign of each of m changed items is a fair coin if two runs do not differ, p is at least
    2 * 0.5^m. A run that is better than another is better than every run below that one, too. So a
    run that is better than another always has the smaller rank.

    Args:
        tasks: Per task the scores between 0 and 1, (runs, n_t); larger is better.
        weights: Per task, summing to 1.
        alpha: Level of all tests together.
    """
    z, changed = pairwise_z(tasks, weights)
    first, second = np.triu_indices(len(z), 1)
    p = np.maximum(2.0 * norm.sf(np.abs(z)), np.minimum(1.0, 2.0 * 0.5 ** changed.astype(float)))
    better = np.zeros(z.shape, dtype=bool)
    for i, j, adjusted in zip(first, second, holm([*p[first, second]]), strict=True):
        if adjusted < alpha:
            better[(i, j) if z[i, j] > 0 else (j, i)] = True
    for middle in range(len(z)):  # Warshall's transitive closure
        better |= np.outer(better[:, middle], better[middle])
    return [1 + int(count) for count in better.sum(axis=0)]
