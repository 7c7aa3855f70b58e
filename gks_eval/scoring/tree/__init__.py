"""From requests to token trees: which tokens are computed, and in which rows, exactly once.

Pure Python: sequences in, plans and rows out; no model and no tensors.

- `sequences`: requests truncated, deduplicated and sorted
- `rows`: one row, a token tree written depth first
- `row_plan`: which sequences share a row, and which rows share a precomputed prefix
- `context_plan`: rows of one context each
- `planned_rows`: what a plan consists of
- `batches`: how many rows go into one forward
- `shares`: which process computes which sequences
"""

from __future__ import annotations

from gks_eval.scoring.tree.batches import halves, next_batch
from gks_eval.scoring.tree.context_plan import plan_contexts
from gks_eval.scoring.tree.planned_rows import Group, PlannedRow, RowLimits
from gks_eval.scoring.tree.row_plan import plan_rows
from gks_eval.scoring.tree.rows import TreeRow, build_row
from gks_eval.scoring.tree.sequences import (
    Sequence,
    count_distinct_tokens,
    count_harness_tokens,
    to_sequences,
)
from gks_eval.scoring.tree.shares import shares

__all__ = [
    "Group",
    "PlannedRow",
    "RowLimits",
    "Sequence",
    "TreeRow",
    "build_row",
    "count_distinct_tokens",
    "count_harness_tokens",
    "halves",
    "next_batch",
    "plan_contexts",
    "plan_rows",
    "shares",
    "to_sequences",
]
