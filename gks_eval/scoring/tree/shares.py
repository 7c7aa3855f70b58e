"""Dividing sequences among processes: equal work each, few prefixes computed twice."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise

from gks_eval.scoring.tree.sequences import Sequence, shared_inputs

__all__ = ["shares"]

SLACK = 0.02
"""How far a cut may lie from the even one, as a part of one share, to separate less."""


def shares(sequences: Seq[Sequence], count: int) -> list[range]:
    """Divide sorted sequences into runs of neighbours that cost about the same.

    A sequence costs the input tokens that it does not share with the one before. Every cut makes
    the run after it compute anew what its first sequence shared, so each cut is moved, by at most
    a fiftieth of a share, to where that is least: between two items rather than between two
    choices of one.

    Args:
        sequences: In the order `to_sequences` gives.
        count: Number of runs, at least 1.

    Returns:
        `count` ranges of positions, in order, together all of them; some are empty where there
        are fewer sequences than runs.
    """
    shared = [0] * len(sequences)
    for at, (one, other) in enumerate(pairwise(sequences), start=1):
        shared[at] = shared_inputs(one, other)
    done = list(accumulate(s.length - c for s, c in zip(sequences, shared, strict=True)))
    share = done[-1] / count if done else 0.0
    cuts = [_cut(done, shared, share * number, SLACK * share) for number in range(1, count)]
    # Where one sequence is worth several shares, cuts coincide.
    bounds = [0, *accumulate(cuts, max), len(sequences)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def _cut(done: list[int], shared: list[int], even: float, slack: float) -> int:
    # The position at which the next run starts; what lies before position i costs done[i - 1].
    near = {
        *range(bisect_left(done, even - slack) + 1, bisect_right(done, even + slack) + 1),
        bisect_left(done, even) + 1,
    }
    return min(
        (i for i in near if i < len(done)),
        key=lambda i: (shared[i], abs(done[i - 1] - even), i),
        default=len(done),
    )
