"""From requests to token trees: which tokens are computed, in which rows, exactly once each.

Pure Python: sequences in, plans and rows out; no model and no tensors.

- `sequences`: requests truncated, deduplicated and sorted
- `rows`: one row, a token tree written depth first
- `plan`: which sequences share a row, and which rows share a precomputed trunk
- `shares`: which process computes which sequences
"""

from __future__ import annotations

from gks_eval.scoring.tree.plan import Group, Limits, PlannedRow, halves, next_batch, plan
from gks_eval.scoring.tree.rows import Row, build_row
from gks_eval.scoring.tree.sequences import (
    Sequence,
    count_distinct_tokens,
    count_harness_tokens,
    to_sequences,
)
from gks_eval.scoring.tree.shares import shares

__all__ = [
    "Group",
    "Limits",
    "PlannedRow",
    "Row",
    "Sequence",
    "build_row",
    "count_distinct_tokens",
    "count_harness_tokens",
    "halves",
    "next_batch",
    "plan",
    "shares",
    "to_sequences",
]
