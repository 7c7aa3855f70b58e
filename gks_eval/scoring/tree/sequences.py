"""Requests as token sequences: truncated as in lm-eval, deduplicated and sorted.

Sorting brings sequences with a common prefix together, so a tree over neighbours needs
only what each sequence shares with the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

from gks_eval.errors import DataError

__all__ = [
    "Sequence",
    "count_distinct_tokens",
    "count_harness_tokens",
    "shared_inputs",
    "to_sequences",
]


@dataclass(frozen=True, slots=True)
class Sequence:
    """Tokens whose last few are scored.

    Attributes:
        tokens: The model's input and one more token, which is only predicted.
        scored: Number of scored tokens at the end.
        requests: Positions of its requests, ascending.
    """

    tokens: tuple[int, ...]
    scored: int
    requests: list[int]

    @property
    def length(self) -> int:
        """Return the number of input tokens."""
        return len(self.tokens) - 1

    @property
    def first_scored(self) -> int:
        """Return the depth of the first input token whose successor is scored."""
        return self.length - self.scored

    @property
    def context(self) -> tuple[int, ...]:
        """Return the tokens before the scored ones."""
        return self.tokens[: len(self.tokens) - self.scored]

    @property
    def targets(self) -> tuple[int, ...]:
        """Return the scored tokens."""
        return self.tokens[len(self.tokens) - self.scored :]


def to_sequences(requests: Iterable[tuple[Seq[int], Seq[int]]], max_length: int) -> list[Sequence]:
    """Truncate, deduplicate and sort requests.

    As in lm-eval: keep the last ``max_length + 1`` tokens of context and continuation, feed all of
    these but the last to the model, and score the continuation.

    Args:
        requests: (context tokens, continuation tokens) pairs.
        max_length: Maximum number of input tokens.

    Returns:
        Each distinct sequence once, in lexicographic order of its tokens. A request without
        continuation has none.

    Raises:
        DataError: A context is empty, or a continuation is longer than `max_length`.
    """
    found: dict[tuple[tuple[int, ...], int], Sequence] = {}
    for index, (context, continuation) in enumerate(requests):
        if not continuation:
            continue
        if not context:
            raise DataError(
                f"request {index}: its context has no tokens; give it at least one token,"
                " such as the tokenizer's prefix token."
            )
        if len(continuation) > max_length:
            raise DataError(
                f"request {index}: its continuation has {len(continuation)} tokens, more than"
                f" max_length={max_length}; raise max_length or shorten the text."
            )
        tokens = (*context, *continuation)[-(max_length + 1) :]
        key = (tokens, len(continuation))
        if key in found:
            found[key].requests.append(index)
        else:
            found[key] = Sequence(tokens, len(continuation), [index])
    return sorted(found.values(), key=lambda sequence: (sequence.tokens, sequence.scored))


def shared_inputs(one: Sequence, other: Sequence) -> int:
    """Return the number of leading input tokens that two sequences have in common."""
    a, b = one.tokens, other.tokens
    most = min(one.length, other.length)
    if a[:most] == b[:most]:
        return most
    low, high = 0, most  # a[:low] is common, a[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def count_distinct_tokens(sequences: Seq[Sequence]) -> int:
    """Return the number of distinct input prefixes: the minimum that must be computed.

    Args:
        sequences: In the order of `to_sequences`.
    """
    total = sum(sequence.length for sequence in sequences)
    return total - sum(shared_inputs(one, other) for one, other in pairwise(sequences))


def count_harness_tokens(sequences: Seq[Sequence]) -> int:
    """Return the number of input tokens that lm-eval's own scorer runs, without padding.

    It runs each distinct input once (the context and all but the last continuation token), so that
    only one-token choices of the same context share a forward.
    """
    # A set, because equal inputs may not be neighbours: their last tokens differ.
    return sum(map(len, {sequence.tokens[:-1] for sequence in sequences}))
