"""The plan of a run: which requests share rows and prefixes, kept for the next run if wanted."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from gks_eval.scoring.tree import (
    Group,
    RowLimits,
    Sequence,
    count_distinct_tokens,
    count_harness_tokens,
    plan_contexts,
    plan_rows,
    to_sequences,
)

__all__ = ["Part", "Plan", "PlanMemo", "make_plan"]

Requests = Seq[tuple[Seq[int], Seq[int]]]


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences that may share prefixes.

    Attributes:
        long: Whether they use LongRoPE's long factors.
        sequences: In the order of `to_sequences`.
        groups: Their rows.
    """

    long: bool
    sequences: list[Sequence]
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run computes.

    Attributes:
        parts: The long sequences, then the others.
        harness_tokens: Input tokens that lm-eval's own scorer runs, without padding.
        distinct_tokens: Distinct input prefixes.
        work: Tokens of all rows and shared prefixes.
    """

    parts: list[Part]
    harness_tokens: int
    distinct_tokens: int
    work: int


def make_plan(
    requests: Requests,
    max_length: int,
    long_from: int | None,
    limits: RowLimits,
    by_context: bool,
) -> Plan:
    """Plan a run.

    Args:
        requests: (context tokens, continuation tokens) pairs.
        max_length: Maximum number of input tokens.
        long_from: The length beyond which LongRoPE uses its long factors; None without them.
        limits: Sizes of rows and batches.
        by_context: Whether a row holds one context with its continuations, for routers that make
            one choice per context.

    Raises:
        DataError: A context is empty, or a continuation exceeds `max_length`.
    """
    sequences = to_sequences(requests, max_length)
    # LongRoPE rotates every position differently in texts beyond its bound, so texts on both
    # sides of it share no prefix.
    is_long = [long_from is not None and one.length > long_from for one in sequences]
    rows = plan_contexts if by_context else plan_rows
    parts = []
    for long in (True, False):
        chosen = [one for one, its in zip(sequences, is_long, strict=True) if its is long]
        parts.append(Part(long, chosen, rows(chosen, limits)))
    return Plan(
        parts,
        sum(count_harness_tokens(part.sequences) for part in parts),
        sum(count_distinct_tokens(part.sequences) for part in parts),
        sum(
            len(group.prefix) + sum(row.tokens for row in group.rows)
            for part in parts
            for group in part.groups
        ),
    )


class PlanMemo:
    """Keeps the last plan, for a next run of equal requests, as by the next setting of a grid."""

    def __init__(self) -> None:
        self._key: tuple[Requests, int, int | None, RowLimits, bool] | None = None
        self._plan: Plan | None = None

    def plan(
        self,
        requests: Requests,
        max_length: int,
        long_from: int | None,
        limits: RowLimits,
        by_context: bool,
    ) -> Plan:
        """Return the plan, as `make_plan` does."""
        key = requests, max_length, long_from, limits, by_context
        if self._plan is None or self._key != key:
            self._plan = make_plan(*key)
            self._key = key
        return self._plan
