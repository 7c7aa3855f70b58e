"""Sequence-level routing written a second time: float64, one request, token and expert at a time.

Nothing here shares code with the package but the reading of adapters from disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from oracle import residual_dense, residual_factors

from gks_eval.library.load import Library
from gks_eval.method.setting import Setting

Pair = tuple[list[int], list[int]]


def spectral_factors(update: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (V^T, U S) of a full matrix, each row's entry of largest magnitude positive."""
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    for r in range(rank):
        if right[r][right[r].abs().argmax()] < 0:
            right[r], left[:, r] = -right[r], -left[:, r]
    return right[:rank], left[:, :rank] * values[:rank]


def read_by(router: str, update: torch.Tensor) -> torch.Tensor:
    """Return the matrix whose product with a token has the expert's score as its norm."""
    if router == "norm":
        return update
    _, values, right = torch.linalg.svd(update, full_matrices=False)
    return right[:1] if router == "arrow" else right[values > 1e-6 * values[0]]


def choice(means: Sequence[float], setting: Setting) -> list[float]:
    """Return the coefficients of a whole request, and check that no tie could change them."""
    top_k, parameters = setting.parameters["top_k"], setting.parameters
    order = sorted(range(len(means)), key=lambda e: -means[e])
    if top_k < len(means):
        assert means[order[top_k - 1]] - means[order[top_k]] > 1e-4 * means[order[0]], "a near tie"
    if parameters.get("weights") == "equal":
        return [1 / top_k if e in order[:top_k] else 0.0 for e in range(len(means))]
    sizes = {e: math.exp(means[e] / parameters["temperature"]) for e in order[:top_k]}
    return [sizes.get(e, 0.0) / sum(sizes.values()) for e in range(len(means))]


@contextmanager
def routed(
    model: Any, library: Library, setting: Setting, own: Sequence[int]
) -> Iterator[dict[str, list[float]]]:
    """Route a model's forwards over single texts, by their tokens at the positions `own`.

    Yields:
        The coefficients by layer, filled by the forward.
    """
    chosen: dict[str, list[float]] = {}
    tables = {}
    for name in library.modules:
        experts, general = library.layer(name, setting)
        rule = setting.rule if general else "factors"
        updates = [residual_dense(pair, general, rule) for pair in experts]
        factors, scaling = [], 1.0
        if setting.combine == "factors" and setting.router == "arrow":
            factors = [residual_factors(pair, general, rule) for pair in experts]
            scaling = experts[0].scaling
        elif setting.combine == "factors":
            factors = [spectral_factors(update, experts[0].rank) for update in updates]
        read = [read_by(setting.router, update) for update in updates]
        tables[name] = updates, factors, scaling, read

    def hook(name: str) -> Any:
        updates, factors, scaling, read = tables[name]

        def add(_layer: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            tokens = args[0][0]
            scores = [[float((matrix @ tokens[t]).norm()) for matrix in read] for t in own]
            means = [sum(row[e] for row in scores) / len(own) for e in range(len(updates))]
            share = chosen[name] = choice(means, setting)
            rows = []
            for x in tokens:
                if setting.combine == "outputs":
                    rows.append(sum(c * (u @ x) for c, u in zip(share, updates, strict=True)))
                    continue
                A = sum(c * pair[0] for c, pair in zip(share, factors, strict=True))
                B = sum(c * pair[1] for c, pair in zip(share, factors, strict=True))
                rows.append(scaling * (B @ (A @ x)))
            return output + torch.stack(rows)[None]

        return add

    handles = [
        model.get_submodule(name).register_forward_hook(hook(name)) for name in library.modules
    ]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(
    model: Any, library: Library, setting: Setting, tokens: Sequence[int], context: int
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """Return the logits after every token, (T, V), routed by the first `context` tokens."""
    with routed(model, library, setting, range(context)) as chosen:
        found = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return found, chosen


def log_likelihoods(
    model: Any, library: Library, setting: Setting, requests: Sequence[Pair], max_length: int
) -> list[tuple[float, bool]]:
    """Return (log-likelihood, is greedy) of each request, truncated as lm-eval does it."""
    results = []
    for context, continuation in requests:
        kept = (context + continuation)[-(max_length + 1) :]
        found, _ = logits(model, library, setting, kept[:-1], len(kept) - len(continuation))
        log_probs = torch.log_softmax(found[-len(continuation) :], dim=-1)
        total = sum(float(row[token]) for row, token in zip(log_probs, continuation, strict=True))
        greedy = all(
            int(row.argmax()) == token for row, token in zip(log_probs, continuation, strict=True)
        )
        results.append((total, greedy))
    return results


def greedy_continuation(
    model: Any, library: Library, setting: Setting, prompt: list[int], count: int, stop: int
) -> list[int]:
    """Return a prompt's greedy continuation without a cache, routed by the prompt alone."""
    tokens = list(prompt)
    for _ in range(count):
        found, _ = logits(model, library, setting, tokens, len(prompt))
        tokens.append(int(found[-1].argmax()))
        if tokens[-1] == stop:
            break
    return tokens[len(prompt) :]
