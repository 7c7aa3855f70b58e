"""The slow, obvious scorer: one request at a time through the model's own forward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

Pair = tuple[list[int], list[int]]


def one_by_one(
    model: Any, requests: Sequence[Pair], max_length: int
) -> list[tuple[float, bool, int]]:
    """Return (log-likelihood, is greedy, tokens) of each request, truncated as lm-eval does it."""
    results = []
    for context, continuation in requests:
        fed = (list(context) + list(continuation))[-(max_length + 1) :][:-1]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([fed]), use_cache=False).logits[0].double()
        log_probs = torch.log_softmax(logits[-len(continuation) :], dim=-1)
        chosen = torch.tensor(list(continuation))
        scores = log_probs.gather(1, chosen[:, None])
        greedy = bool((log_probs.argmax(dim=-1) == chosen).all())
        results.append((float(scores.sum()), greedy, len(continuation)))
    return results


def random_requests(
    seed: int, vocabulary: int, *, items: int = 12, few_shot: int = 60, longest: int = 12
) -> list[Pair]:
    """Return requests of every shape there is: items with choices, half of them after one long
    prefix, one-token contexts and choices, a long continuation, choices that continue each
    other, and duplicates."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    shots, documents = tokens(few_shot), [tokens(draw.choice((1, 4, 15, 40))) for _ in range(4)]
    requests: list[Pair] = []
    for item in range(items):
        context = (shots if item % 2 else []) + draw.choice(documents) + tokens(item % 4)
        stem = tokens(item % 3)
        for _ in range(3):
            length = draw.choice((1, 1, 4, longest))
            requests.append((context, stem + tokens(length)))
        requests.append((context, [*stem, *requests[-1][1], *tokens(2)]))
    requests += [([5], tokens(1)), ([5], tokens(3 * longest)), requests[0], requests[3]]
    context, continuation = requests[7]
    requests.append((context + continuation[:1], continuation[1:] or tokens(2)))
    draw.shuffle(requests)
    return requests
