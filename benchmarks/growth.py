"""Row `growth`: how cost grows with experts, with choices per item, and with context."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.evaluation import PLAIN_BATCH
from benchmarks.layer import contestants
from benchmarks.record import Growth, GrowthPoint
from benchmarks.sizes import Sizes
from benchmarks.subject import Subject
from benchmarks.timing import synchroniser, time_interleaved
from gks_eval.model.lm import GksArrowLM

__all__ = ["growth_rows", "random_requests"]

CHOICES, CHOICE_TOKENS = 4, 8
Pair = tuple[list[int], list[int]]


@torch.no_grad()
def growth_rows(
    subject: Subject,
    ours: GksArrowLM,
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> Growth:
    """Measure all three.

    Args:
        subject: The model of the evaluations.
        ours: Its scorer.
        sizes: The sizes to measure.
        rounds: Rounds per point.
        device: Device of all tensors.
        dtype: Dtype of the layer.
        seed: Seed of weights and tokens.
        report: Called with progress messages.
    """
    width_in, width_out = sizes.growth_layer
    experts = []
    for count in sizes.growth_experts:
        report(f"growth: {count} experts")
        experts.append(_layer(count, sizes, rounds, device, dtype, seed))

    def evaluate(at: int, context: int, choices: int) -> GrowthPoint:
        report(f"growth: {choices} choices, {context} tokens of context")
        vocabulary = subject.model.config.vocab_size
        pairs = random_requests(sizes.growth_items, context, choices, vocabulary, seed)
        scored = {
            "plain": partial(_score, ours, pairs, "plain"),
            "packed": partial(_score, ours, pairs, "packed"),
        }
        warm_up = {who: partial(_score, ours, pairs[:1], who) for who in scored}
        seconds = time_interleaved(
            scored, rounds, warm_ups=warm_up, synchronise=synchroniser(device)
        )
        return GrowthPoint(at=at, seconds=seconds)

    return Growth(
        layer=f"{width_in}->{width_out}, {sizes.growth_tokens} tokens",
        experts=tuple(experts),
        model=subject.name,
        choices=tuple(evaluate(n, sizes.growth_context, n) for n in sizes.growth_choices),
        contexts=tuple(evaluate(n, n, CHOICES) for n in sizes.growth_contexts),
    )


def _layer(
    count: int, sizes: Sizes, rounds: int, device: str, dtype: torch.dtype, seed: int
) -> GrowthPoint:
    width_in, width_out = sizes.growth_layer
    with contestants(
        width_in,
        width_out,
        experts=count,
        rank=sizes.rank,
        device=device,
        dtype=dtype,
        seed=seed,
    ) as layer:
        generator = torch.Generator().manual_seed(seed)
        x_TK = torch.randn(sizes.growth_tokens, width_in, generator=generator).to(device, dtype)
        calls = {who: call for who, call in layer.calls(x_TK).items() if who in ("routed", "peft")}
        seconds = time_interleaved(
            calls, rounds, least_seconds=sizes.least_seconds, synchronise=synchroniser(device)
        )
    return GrowthPoint(at=count, seconds=seconds)


def random_requests(
    items: int, context: int, choices: int, vocabulary: int, seed: int
) -> list[Pair]:
    """Return (context, continuation) tokens; each item has another context."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> list[int]:
        tokens: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
        return tokens

    contexts = [drawn(context) for _ in range(items)]
    return [(tokens, drawn(CHOICE_TOKENS)) for tokens in contexts for _ in range(choices)]


def _score(lm: GksArrowLM, pairs: list[Pair], scoring: str) -> None:
    lm.choose_scoring(scoring)
    lm.choose_batch_size("auto" if scoring == "packed" else PLAIN_BATCH)
    lm._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)
