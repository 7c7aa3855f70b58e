"""Dividing sequences among processes: equal work, few prefixes computed twice."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise

from gks_eval.scoring.tree.sequences import Sequence, shared_inputs

__all__ = ["shares"]

SLACK = 0.02
"""How far a cut may be moved from the even one, as a fraction of a share."""


def shares(sequences: Seq[Sequence], count: int) -> list[range]:
    """Divide sorted sequences into runs of neighbours that cost about the same.

    A sequence costs the input tokens that it does not share with the one before. After a cut, the
    tokens that the first sequence shared are computed again. So each cut is moved, by at most 2 %
    of a share, to where this cost is lowest: between two items rather than between two choices of
    one item.

    Args:
        sequences: In the order of `to_sequences`.
        count: Number of runs, at least 1.

    Returns:
        `count` ranges of positions, in order, which together cover all of them. Some are empty if
        there are fewer sequences than runs.
    """
    shared = [0] * len(sequences)
    for at, (one, other) in enumerate(pairwise(sequences), start=1):
        shared[at] = shared_inputs(one, other)
    done = list(accumulate(s.length - c for s, c in zip(sequences, shared, strict=True)))
    share = done[-1] / count if done else 0.0
    cuts = [_cut(done, shared, share * number, SLACK * share) for number in range(1, count)]
    # Cuts coincide if one sequence is worth several shares.
    bounds = [0, *accumulate(cuts, max), len(sequences)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def _cut(done: list[int], shared: list[int], even: float, slack: float) -> int:
    # The position at which the next run starts; all before position i costs done[i - 1].
    near = {
        *range(bisect_left(done, even - slack) + 1, bisect_right(done, even + slack) + 1),
        bisect_left(done, even) + 1,
    }
    return min(
        (i for i in near if i < len(done)),
        key=lambda i: (shared[i], abs(done[i - 1] - even), i),
        default=len(done),
    )
