"""The packed scorer: requests in, log-likelihoods out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from gks_eval.errors import ResourceError, UsageError
from gks_eval.scoring.batch_sizes import choose_limits
from gks_eval.scoring.head import Answers
from gks_eval.scoring.loglikelihood import NOTHING_SCORED, TokenLogLikelihood
from gks_eval.scoring.plans import Plan, PlanMemo
from gks_eval.scoring.progress import Progress
from gks_eval.scoring.support import tree_model
from gks_eval.scoring.tree import (
    Group,
    PlannedRow,
    RowLimits,
    Sequence,
    build_row,
    halves,
    next_batch,
)
from gks_eval.scoring.tree_model import SharedPrefix, TreeModel
from gks_eval.util.out_of_memory import is_out_of_memory

__all__ = ["PackedCounts", "packed_log_likelihoods"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

OVERLAPPED_ON = {"cuda"}
"""Devices that compute a batch while the host reads the previous one and builds the next."""
_Started = tuple[list[list[Sequence]], Callable[[], Answers]]


@dataclass(slots=True)
class PackedCounts:
    """What a run computed, in tokens.

    Attributes:
        requests: Requests answered.
        harness_tokens: Input tokens that lm-eval's own scorer runs for them, without padding.
        distinct_tokens: Distinct input prefixes, the minimum that any scorer must run.
        computed_tokens: Input tokens run, with padding.
        scored_positions: Positions at which the vocabulary head was applied.
        forwards: Calls of the transformer.
    """

    requests: int = 0
    harness_tokens: int = 0
    distinct_tokens: int = 0
    computed_tokens: int = 0
    scored_positions: int = 0
    forwards: int = 0


def packed_log_likelihoods(
    model: nn.Module,
    requests: Seq[tuple[Seq[int], Seq[int]]],
    *,
    device: torch.device | str,
    max_length: int,
    batch_tokens: int | None = None,
    row_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    emit: Callable[[int, TokenLogLikelihood], None] | None = None,
    counts: PackedCounts | None = None,
    memo: PlanMemo | None = None,
) -> list[TokenLogLikelihood]:
    """Score continuations after their contexts, each distinct prefix computed once per row.

    Requests are truncated as in lm-eval: the last ``max_length + 1`` tokens of context and
    continuation are kept, all of these but the last are the model's input, and the continuation
    is scored. A log-likelihood is the float64 sum of float32 log-probabilities. Results do not
    depend on the order of the requests, and depend on the sizes only by rounding.

    If the model's routed layers make one choice per context, a row holds one context with its
    continuations, and the choice is made from the context's tokens alone.

    Args:
        model: A causal LM that `supports_packed`.
        requests: (context tokens, continuation tokens) pairs. No context may be empty; for an
            empty continuation the result is `NOTHING_SCORED`.
        device: Where the model's inputs go.
        max_length: Maximum number of input tokens.
        batch_tokens: Maximum number of tokens per forward; by default chosen from device and
            memory. Halved permanently whenever memory runs out.
        row_tokens: Tokens per row; by default chosen from the device.
        progress: Called with numbers of requests, in proportion to the tokens computed; they add
            up to all requests.
        emit: Called with a request's index and result as soon as it is known.
        counts: Counters to add to.
        memo: Keeps the plan of the rows for the next call with equal requests.

    Returns:
        One result per request, in the order of `requests`.

    Raises:
        UsageError: The model does not support packed scoring.
        DataError: A context is empty, or a continuation exceeds `max_length`.
        ResourceError: A single request does not fit into memory.
    """
    results = {n: NOTHING_SCORED for n, (_, text) in enumerate(requests) if not text}
    if len(results) == len(requests):
        return list(results.values())
    tree = tree_model(model, torch.device(device), max_length)
    if isinstance(tree, str):
        raise UsageError(f"packed scoring does not work on this model, as {tree}; use plain.")
    limits = choose_limits(
        tree.base,
        tree.config,
        tree.device,
        unpadded=tree.unpadded,
        batch_tokens=batch_tokens,
        row_tokens=row_tokens,
    )
    plan = (memo or PlanMemo()).plan(requests, max_length, tree.long_from, limits, tree.by_context)
    run = _Run(tree, limits, counts if counts is not None else PackedCounts())
    run.counts.requests += len(requests)
    for scored, log_probs, greedy in run.score(plan, progress, len(requests)):
        result = TokenLogLikelihood(
            log_probs.double().sum().item(),
            bool(greedy.all()),
            scored.scored,
            int(log_probs.count_nonzero()),
        )
        for index in scored.requests:
            results[index] = result
            if emit is not None:
                emit(index, result)
    return [results[index] for index in range(len(requests))]


class _Run:
    # One pass over sequences; its batch size only shrinks.

    def __init__(self, tree: TreeModel, limits: RowLimits, counts: PackedCounts) -> None:
        self.tree = tree
        self.limits = limits
        self.counts = counts
        self.progress: Progress | None = None

    def score(
        self, plan: Plan, report: Callable[[int], None] | None, requests: int
    ) -> Iterator[tuple[Sequence, torch.Tensor, torch.Tensor]]:
        """Yield each sequence with its scored tokens' log-probabilities and greedy marks."""
        self.counts.harness_tokens += plan.harness_tokens
        self.counts.distinct_tokens += plan.distinct_tokens
        self.progress = report and Progress(report, requests, plan.work)
        for part in plan.parts:
            for group in part.groups:
                yield from self._score_group(part.sequences, group, part.long)
        if self.progress is not None:
            self.progress.close()

    def _score_group(
        self, sequences: list[Sequence], group: Group, long: bool
    ) -> Iterator[tuple[Sequence, torch.Tensor, torch.Tensor]]:
        prefix: SharedPrefix = []
        if group.prefix:
            prefill = partial(self.tree.prefill, group.prefix, long=long)
            found = self._in_memory(prefill, len(group.prefix))
            if found is None:
                raise _too_large(len(group.prefix), self.tree.device)
            prefix = found
            self._count(len(group.prefix))
        rows = list(group.rows)
        waiting: _Started | None = None
        while rows:
            size = next_batch(rows, self.limits, len(group.prefix))
            batch, rows = rows[:size], rows[size:]
            members = [[sequences[i] for i in row.members] for row in batch]
            score = partial(self._score_batch, members, prefix, long)
            answers = self._in_memory(score, sum(row.tokens for row in batch))
            if answers is None:
                rows = self._smaller(batch, len(group.prefix)) + rows
                continue
            if waiting is not None:
                yield from _answered(*waiting)
            waiting = members, answers
            if self.tree.device.type not in OVERLAPPED_ON:
                yield from _answered(*waiting)
                waiting = None
        if waiting is not None:
            yield from _answered(*waiting)

    def _in_memory(self, compute: Callable[[], T], tokens: int) -> T | None:
        if self.progress is None:
            return _unless_out_of_memory(compute)
        layers = self.tree.layers
        with self.progress.during(layers, len(layers), tokens):
            found = _unless_out_of_memory(compute)
        if found is None:
            self.progress.finish(-tokens)  # it is computed again
        return found

    def _score_batch(
        self, members: list[list[Sequence]], prefix: SharedPrefix, long: bool
    ) -> Callable[[], Answers]:
        before = prefix[0][0].shape[2] if prefix else 0
        rows = [build_row(row, before) for row in members]
        hidden_MH, starts = self.tree.hidden(rows, prefix, long=long)
        nodes = [
            start + node
            for start, row in zip(starts, rows, strict=True)
            for path in row.scored
            for node in path
        ]
        tokens = [token for row in members for one in row for token in one.targets]
        position_P, position_S = torch.unique(torch.tensor(nodes), return_inverse=True)
        hidden_PH = hidden_MH[position_P.to(hidden_MH.device)]
        answers = self.tree.head.started(hidden_PH, position_S, torch.tensor(tokens))
        self._count(hidden_MH.shape[0], len(position_P))
        return answers

    def _count(self, tokens: int, positions: int = 0) -> None:
        self.counts.computed_tokens += tokens
        self.counts.scored_positions += positions
        self.counts.forwards += 1

    def _smaller(self, batch: list[PlannedRow], prefix: int) -> list[PlannedRow]:
        # What to try after a batch that did not fit.
        sizes = [row.tokens for row in batch]
        tokens = len(batch) * max(sizes) if self.limits.padded or prefix else sum(sizes)
        self.limits = replace(self.limits, batch_tokens=max(1, tokens // 2))
        if len(batch) > 1:
            logger.warning("Out of memory; continuing with %d tokens per batch.", tokens // 2)
            return batch
        parts = halves(batch[0])
        if len(parts) == 1:
            raise _too_large(prefix + tokens, self.tree.device)
        logger.warning("Out of memory; splitting a row of %d tokens.", tokens)
        return parts


def _answered(
    members: list[list[Sequence]], answers: Callable[[], Answers]
) -> Iterator[tuple[Sequence, torch.Tensor, torch.Tensor]]:
    log_probs, greedy = answers()
    at = 0
    for one in (one for row in members for one in row):
        yield one, log_probs[at : at + one.scored], greedy[at : at + one.scored]
        at += one.scored


def _unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except RuntimeError as error:  # only the GPU's own allocator raises OutOfMemoryError
        if not is_out_of_memory(error):
            raise
    # The traceback, which kept the failed forward's tensors alive, is gone by now.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _too_large(tokens: int, device: torch.device) -> ResourceError:
    return ResourceError(
        f"one request of {tokens} tokens does not fit into the memory of {device}; lower "
        "max_length, load the model in 4 or 8 bits, or use a larger device."
    )
