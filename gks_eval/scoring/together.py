"""Requests of several processes, pooled and divided into shares of equal work."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from gks_eval.scoring.loglikelihood import NOTHING_SCORED, TokenLogLikelihood
from gks_eval.scoring.tree import shares, to_sequences
from gks_eval.util.process_group import ProcessGroup

__all__ = ["score_together"]

Pair = tuple[Seq[int], Seq[int]]


def score_together(
    requests: Seq[Pair],
    score: Callable[[list[Pair]], list[TokenLogLikelihood]],
    *,
    max_length: int,
    group: ProcessGroup,
) -> list[TokenLogLikelihood]:
    """Score requests together with the other processes of a group.

    lm-eval assigns items to processes in turn, which separates items with a common prefix and can
    give one process the longer ones. Here the requests of all processes are pooled, divided into
    runs with equal numbers of distinct tokens, and the results returned. Two collective calls.

    Args:
        requests: This process's (context tokens, continuation tokens) pairs; may be empty.
        score: Scores any requests on this process's model.
        max_length: Maximum number of input tokens.
        group: The processes.

    Returns:
        One result per request, in the order of `requests`.

    Raises:
        DataError: A request of any process cannot be scored; raised in every process.
    """
    pooled = group.gather(list(requests))
    everything = [pair for part in pooled for pair in part]
    sequences = to_sequences(everything, max_length)
    own = [sequences[at] for at in shares(sequences, group.size)[group.rank]]
    answers = score([everything[sequence.requests[0]] for sequence in own])
    found: dict[int, TokenLogLikelihood] = {}
    for part in group.gather([(s.requests, a) for s, a in zip(own, answers, strict=True)]):
        for indices, answer in part:
            found.update(dict.fromkeys(indices, answer))
    start = sum(len(part) for part in pooled[: group.rank])
    return [found[start + at] if text else NOTHING_SCORED for at, (_, text) in enumerate(requests)]
