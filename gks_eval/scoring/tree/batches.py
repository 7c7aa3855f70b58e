"""How many planned rows go into one forward, and what follows if one does not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from gks_eval.scoring.tree.planned_rows import PlannedRow, RowLimits

__all__ = ["halves", "next_batch"]


def next_batch(rows: Seq[PlannedRow], limits: RowLimits, prefix: int = 0) -> int:
    """Return how many of the first `rows` go into one forward: at least one.

    Args:
        rows: As in a group: trees, then chains, each sorted from the longest.
        limits: Sizes of rows and batches.
        prefix: Number of tokens of their shared prefix.
    """
    if not limits.padded and not prefix:
        return _next_unpadded(rows, limits)
    longest = 0
    for count, row in enumerate(rows, start=1):
        longest = max(longest, row.tokens)
        maskless = rows[0].chain and not prefix
        cells = 0 if maskless else count * longest * (prefix + longest)
        if count > 1 and (
            count * longest > limits.batch_tokens
            or cells > limits.mask_cells
            # Padding a much shorter row costs more than a separate forward.
            or (4 * row.tokens < 3 * longest and 2 * (count - 1) * longest > limits.batch_tokens)
        ):
            return count - 1
    return len(rows)


def _next_unpadded(rows: Seq[PlannedRow], limits: RowLimits) -> int:
    tokens = cells = 0
    for count, row in enumerate(rows):
        tokens += row.tokens
        cells += 0 if row.chain else row.tokens**2
        if count and (tokens > limits.batch_tokens or cells > limits.mask_cells):
            return count
    return len(rows)


def halves(row: PlannedRow) -> list[PlannedRow]:
    """Split a row that does not fit into memory, or return it alone if it has one sequence."""
    middle = len(row.members) // 2
    if not middle:
        return [row]
    return [
        PlannedRow(members, row.tokens, row.chain)
        for members in (row.members[:middle], row.members[middle:])
    ]
