"""The leaderboard: ranks with ties, what a setting needs and costs, and its tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from gks_eval.evidence.stats.ranks import pairwise_z, ranks


def _ranks_in_loops(tasks, weights, alpha):
    """Holm, the test and the reachability of `ranks`, one number at a time."""
    runs = range(len(tasks[0]))
    tests = []
    for a in runs:
        for b in range(a + 1, len(runs)):
            mean = variance = 0.0
            changed = 0
            for scores, weight in zip(tasks, weights, strict=True):
                differences = [x - y for x, y in zip(scores[a], scores[b], strict=True)]
                changed += sum(d != 0 for d in differences)
                differences += [1.0, -1.0]
                n = len(differences)
                own = math.fsum(differences) / n
                mean += weight * own
                variance += weight**2 * math.fsum((d - own) ** 2 for d in differences) / n / n
            p = math.erfc(abs(mean) / math.sqrt(2 * variance))
            tests.append((max(p, min(1.0, 2 * 0.5**changed)), a, b, mean))
    below = {a: set() for a in runs}
    for done, (p, a, b, mean) in enumerate(sorted(tests)):
        if p * (len(tests) - done) >= alpha:
            break
        below[a if mean > 0 else b].add(b if mean > 0 else a)

    def reached(a):
        return below[a].union(*(reached(b) for b in below[a]))

    return [1 + sum(a in reached(b) for b in runs) for a in runs]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_equal_a_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    quality = rng.choice([0.3, 0.5, 0.7], size=7) + rng.normal(0, 0.05, size=7)
    sizes = rng.integers(1, 150, size=3)
    tasks = [(rng.random((7, n)) < quality[:, None]).astype(float) for n in sizes]
    tasks[0] = tasks[0] * 0.5 + 0.25 * rng.random(tasks[0].shape)  # no zeros and ones
    weights = rng.dirichlet(np.ones(3))
    assert ranks(tasks, weights) == _ranks_in_loops(tasks, weights, 0.05)


def test_three_planted_levels_share_their_ranks():
    rng = np.random.default_rng(0)
    levels = np.repeat([0.8, 0.5, 0.2], [4, 3, 5])
    tasks = [(rng.random((12, 400)) < levels[:, None]).astype(float) for _ in range(2)]
    order = rng.permutation(12)
    found = ranks([scores[order] for scores in tasks], [0.5, 0.5])
    # four on the first level, then 1 + 4, then 1 + 4 + 3
    assert found == [{0.8: 1, 0.5: 5, 0.2: 8}[level] for level in levels[order]]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_is_better_than_another_has_the_smaller_rank(seed):
    rng = np.random.default_rng(seed)
    scores = (rng.random((5, 15)) < np.linspace(0.02, 0.98, 5)[:, None]).astype(float)
    z, changed = pairwise_z([scores], [1.0])
    p = np.maximum(2 * norm.sf(abs(z)), 2 * 0.5**changed)
    found = ranks([scores], [1.0])
    separated = np.argwhere((p < 0.05 / 10) & (z > 0))  # by Bonferroni, and so by Holm
    assert len(separated)
    assert all(found[better] < found[worse] for better, worse in separated)


def test_equal_runs_share_the_first_rank():
    same = np.tile(np.arange(50) % 2.0, (40, 1))
    assert ranks([same], [1.0]) == [1] * 40
    assert ranks([same[:1]], [1.0]) == [1]


def test_five_changed_items_are_never_enough():
    scores = np.zeros((2, 500))
    scores[0, :5] = 1
    assert ranks([scores], [1.0]) == [1, 1]  # 2 * 0.5^5 = 0.0625
    scores[0, :9] = 1
    assert ranks([scores], [1.0]) == [1, 2]


def test_z_has_the_level_of_the_exact_test_of_changed_items():
    # 16 gains, no losses: McNemar's exact p is 2^-15 = 3.1e-5
    scores = np.zeros((2, 100))
    scores[0, :16] = 1
    z, changed = pairwise_z([scores], [1.0])
    assert changed[0, 1] == 16
    assert 2 * norm.sf(z[0, 1]) == pytest.approx(2.0**-15, rel=1.0)


def test_false_ranks_are_no_more_frequent_than_alpha():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        easy = rng.random(60)
        scores = (rng.random((10, 60)) < easy).astype(float)  # all runs are equally good
        wrong += ranks([scores[:, :40], scores[:, 40:]], [0.5, 0.5]) != [1] * 10
    assert wrong <= 17  # binomial of 200 and 5%: more than 17 has a probability of 1.2%
