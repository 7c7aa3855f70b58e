"""Rows of one context each, for settings that make one choice per context.

Sequences share a row only if they have the same context, and every row holds its whole context.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from math import isqrt

from gks_eval.scoring.tree.planned_rows import Group, PlannedRow, RowLimits
from gks_eval.scoring.tree.sequences import Sequence, count_distinct_tokens, shared_inputs

__all__ = ["plan_contexts"]


def plan_contexts(sequences: Seq[Sequence], limits: RowLimits) -> list[Group]:
    """Assign every sequence to one row of sequences with its context.

    Args:
        sequences: In the order of `to_sequences`.
        limits: Sizes of rows and batches. The continuations of a context that exceed a row are
            divided among several, at most a third of which is the repeated context.

    Returns:
        One group without a shared prefix; none without sequences.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for at, sequence in enumerate(sequences):
        found.setdefault(sequence.context, []).append(at)
    rows = []
    for context, positions in found.items():
        size = min(max(limits.whole, 3 * len(context)), isqrt(limits.mask_cells))
        for members in _pieces(sequences, positions, size):
            chosen = [sequences[at] for at in members]
            tokens = count_distinct_tokens(chosen)
            chain = tokens == max(one.length for one in chosen)
            rows.append(PlannedRow(tuple(members), tokens, chain))
    rows.sort(key=lambda row: (row.chain, -row.tokens))
    return [Group((), rows)] if rows else []


def _pieces(sequences: Seq[Sequence], positions: Seq[int], size: int) -> Iterator[list[int]]:
    piece: list[int] = []
    tokens = 0
    for at in positions:
        new = sequences[at].length
        if piece:
            new -= shared_inputs(sequences[piece[-1]], sequences[at])
            if tokens + new > size:
                yield piece
                piece, tokens, new = [], 0, sequences[at].length
        piece.append(at)
        tokens += new
    if piece:
        yield piece
