"""Row `generation`: lm-eval's `generate_until`, by `hf` without adapters and by ours.

Decoding is greedy. All contestants share the base's weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.peers import twin
from benchmarks.record import GenerationRow
from benchmarks.sizes import Sizes
from benchmarks.subject import Subject
from benchmarks.timing import Call, ratio, synchroniser, time_interleaved
from gks_eval.model.lm import GksArrowLM

__all__ = ["BATCH", "UNROUTED", "generation_rows", "prompts_of"]

BATCH = 8
UNROUTED = "router=none"
WORDS = (
    "The train to the coast leaves at noon , and most of the people who take it carry baskets "
    "of bread and fruit because the journey is long and the only shop is closed"
).split()


def prompts_of(count: int) -> list[str]:
    """Return prompts of 3 to 92 words, in no order of length."""
    text = WORDS * 5
    starts = [n % len(WORDS) for n in range(count)]
    lengths = [3 + 37 * n % 90 for n in range(count)]
    return [
        f"Question: {' '.join(text[start : start + length])}?\nAnswer:"
        for start, length in zip(starts, lengths, strict=True)
    ]


def generation_rows(
    subject: Subject,
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    seed: int,  # noqa: ARG001 - nothing is random
    report: Callable[[str], None],
) -> list[GenerationRow]:
    """Time texts of a fixed length, and texts that end at one of several stop strings.

    Args:
        subject: The model and library.
        sizes: Number of prompts, and of new tokens.
        rounds: Rounds.
        device: Device of the model.
        seed: Unused.
        report: Called with progress messages.
    """
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=twin(subject.model), tokenizer=subject.tokenizer, batch_size=BATCH)
    contestants: dict[str, Any] = {"hf": hf, UNROUTED: _ours(subject, router="none")}
    library = str(subject.library.path)
    contestants["arrow"] = _ours(subject, library=library, subtract="none")
    if subject.library.general:
        contestants["gks:avg"] = _ours(subject, library=library, subtract="avg")
    prompts, tokens = prompts_of(sizes.generated[0]), sizes.generated[1]
    limits = {"max_gen_toks": tokens, "do_sample": False}
    kinds: dict[str, dict[str, Any]] = {
        f"{tokens} tokens": {**limits, "min_new_tokens": tokens, "until": []},
        "until newline, . or )": {**limits, "until": ["\n", ".", ")"]},
    }
    rows = []
    for kind, arguments in kinds.items():
        report(f"generation: {kind}, {rounds} rounds")
        texts: dict[str, list[str]] = {}
        calls: dict[str, Call] = {
            who: partial(_generate, lm, prompts, arguments, texts, who)
            for who, lm in contestants.items()
        }
        seconds = time_interleaved(
            calls,
            rounds,
            warm_ups={
                who: partial(_generate, lm, prompts[:2], arguments, {}, who)
                for who, lm in contestants.items()
            },
            synchronise=synchroniser(device),
            clock=time.process_time if device == "cpu" else time.perf_counter,
        )
        pairs = zip(texts[UNROUTED], texts["hf"], strict=True)
        rows.append(
            GenerationRow(
                model=subject.name,
                kind=kind,
                prompts=len(prompts),
                batch=BATCH,
                seconds=seconds,
                over_hf={who: ratio(one, seconds["hf"]) for who, one in seconds.items()},
                equal=sum(ours == theirs for ours, theirs in pairs),
            )
        )
    return rows


def _ours(subject: Subject, **arguments: Any) -> GksArrowLM:
    model: Any = twin(subject.model)
    return GksArrowLM(model, tokenizer=subject.tokenizer, batch_size=BATCH, **arguments)


@torch.no_grad()
def _generate(
    lm: Any,
    prompts: list[str],
    arguments: dict[str, Any],
    texts: dict[str, list[str]],
    who: str,
) -> None:
    from lm_eval.api.instance import Instance

    requests = [
        # lm-eval changes the arguments.
        Instance("generate_until", {}, (prompt, {**arguments, "until": [*arguments["until"]]}), n)
        for n, prompt in enumerate(prompts)
    ]
    texts[who] = lm.generate_until(requests, disable_tqdm=True)
