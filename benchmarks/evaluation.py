"""Row `evaluation`: lm-eval's scorer with PEFT's Arrow or the base, and ours, plain and packed.

The time covers everything from texts to log-likelihoods: tokenisation, planning, forwards, head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.evaluation_items import Items
from benchmarks.peers import peft_arrow, peft_setting, twin
from benchmarks.record import Agreement, Evaluation, EvaluationSet, PlainForward, Timing
from benchmarks.sizes import Sizes
from benchmarks.subject import Subject
from benchmarks.timing import Call, per_second, ratio, synchroniser, time_interleaved
from gks_eval.model.lm import GksArrowLM
from gks_eval.scoring.tree import count_distinct_tokens, to_sequences

__all__ = ["Scorers", "TokenCounter", "evaluate_collection", "open_scorers"]

PLAIN_BATCH = 8


class TokenCounter:
    """Counts the tokens, padding included, that models look up in their embeddings.

    Attributes:
        tokens: Tokens so far.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def watch(self, model: Any) -> None:
        """Count the tokens that `model` runs from now on."""
        embeddings: nn.Module = model.get_input_embeddings()
        embeddings.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG002
        self.tokens += arguments[0].numel()


@dataclass(frozen=True)
class Scorers:
    """The contestants: separate modules that share all weights.

    Attributes:
        base: lm-eval's HFLM.
        peft: lm-eval's HFLM around PEFT's Arrow.
        ours: `GksArrowLM`.
        counter: Counts the tokens of all three.
    """

    base: Any
    peft: Any
    ours: GksArrowLM
    counter: TokenCounter

    def calls(self, items: Items, batch_sizes: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
        """Return calls that score `items`, as (log-likelihood, greedy) pairs, by contestant."""
        calls: dict[str, Callable[[], Any]] = {}
        for who, lm in (("peft", self.peft), ("base", self.base)):
            for size in batch_sizes:
                calls[f"{who} {size}"] = partial(_score_hf, lm, items, size)
        calls[f"plain {PLAIN_BATCH}"] = partial(_score_ours, self.ours, items, "plain", PLAIN_BATCH)
        calls["packed"] = partial(_score_ours, self.ours, items, "packed", "auto")
        return calls

    def distinct_tokens(self, items: Items) -> int:
        """Return how many distinct token prefixes the requests have."""
        pairs = self.ours.token_pairs(items.requests)
        return count_distinct_tokens(to_sequences(pairs, self.ours.max_length))


def _score_hf(lm: Any, items: Items, batch_size: int) -> Any:
    lm.batch_size_per_gpu = batch_size
    return lm.loglikelihood(items.requests, disable_tqdm=True)


def _score_ours(lm: GksArrowLM, items: Items, scoring: str, batch_size: int | str) -> Any:
    lm.choose_scoring(scoring)
    lm.choose_batch_size(batch_size)
    return lm.loglikelihood(items.requests, disable_tqdm=True)


def open_scorers(subject: Subject) -> Scorers:
    """Make the contestants; the base's scorer uses the subject's model itself."""
    from lm_eval.models.huggingface import HFLM

    setting = peft_setting(subject.library)
    base = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer)
    # HFLM accepts only a transformers model, so PEFT's model is set afterwards.
    adapted = HFLM(pretrained=twin(subject.model), tokenizer=subject.tokenizer)
    adapted._model = peft_arrow(adapted._model, subject.library, setting)
    ours = GksArrowLM(
        twin(subject.model),  # type: ignore[arg-type]
        tokenizer=subject.tokenizer,
        library=str(subject.library.path),
        **setting.arguments(),
    )
    counter = TokenCounter()
    for model in (base.model, adapted._model, ours.model):
        counter.watch(model)
    return Scorers(base, adapted, ours, counter)


@torch.no_grad()
def evaluate_collection(
    name: str,
    sets: Mapping[str, Items],
    subject: Subject,
    scorers: Scorers,
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    seed: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Time a collection as one call, and each set in a separate call.

    Args:
        name: Name of the collection.
        sets: Items by set.
        subject: The model and library.
        scorers: The contestants, made from the subject.
        sizes: Batch sizes and the shapes of plain forwards.
        rounds: Rounds of the call with all sets; single sets have half as many.
        device: Device of the model.
        seed: Seed of the plain forwards' tokens.
        report: Called with progress messages.
    """
    wait = synchroniser(device)
    everything = Items.joined(list(sets.values()))
    forwards = _plain_forwards(scorers.ours, sizes, seed)
    report(f"evaluation {name}: {len(everything.sizes)} items together")
    first = scorers.calls(everything.first(2), sizes.batch_sizes)
    calls = scorers.calls(everything, sizes.batch_sizes)
    answers: dict[str, Any] = {}
    tokens: dict[str, int] = {}
    timed: dict[str, Call] = {
        who: partial(_remember, who, call, answers, tokens, scorers.counter)
        for who, call in calls.items()
    }
    seconds = time_interleaved(
        timed | forwards,
        rounds,
        warm_ups=first,
        least_seconds=10 * sizes.least_seconds,
        synchronise=wait,
    )
    together = _set(everything, scorers, _of(seconds, calls), tokens)
    alone = {}
    for one, items in sets.items():
        report(f"evaluation {name}: {one}")
        tokens = {}
        kept = {
            who: partial(_remember, who, call, {}, tokens, scorers.counter)
            for who, call in scorers.calls(items, sizes.batch_sizes).items()
            if who.startswith("peft")
            or who in ("packed", together.peer_best.replace("peft", "base"))
        }
        warm = dict.fromkeys(kept, _nothing)  # all have just run
        found = time_interleaved(kept, max(1, rounds // 2), warm_ups=warm, synchronise=wait)
        alone[one] = _set(items, scorers, found, tokens)
    return Evaluation(
        name=name,
        base=subject.name,
        library=subject.adapters,
        experts=len(subject.library.experts),
        together=together,
        alone=alone,
        agreement=_agreement(everything, answers),
        forward=_forward(_of(seconds, forwards), together),
    )


def _nothing() -> None:
    return None


def _of(seconds: Mapping[str, Timing], names: Mapping[str, Any]) -> dict[str, Timing]:
    return {name: seconds[name] for name in names}


def _remember(
    who: str,
    call: Callable[[], Any],
    answers: dict[str, Any],
    tokens: dict[str, int],
    counter: TokenCounter,
) -> None:
    before = counter.tokens
    answers[who] = call()
    tokens[who] = counter.tokens - before


def _set(
    items: Items, scorers: Scorers, seconds: dict[str, Timing], tokens: dict[str, int]
) -> EvaluationSet:
    peers = [who for who in seconds if who.startswith("peft")]
    best = min(peers, key=lambda who: seconds[who].median)
    return EvaluationSet(
        items=len(items.sizes),
        requests=len(items.requests),
        distinct_tokens=scorers.distinct_tokens(items),
        computed_tokens=tokens,
        seconds=seconds,
        peer_best=best,
        peft_over_packed=ratio(seconds[best], seconds["packed"]),
    )


def _agreement(items: Items, answers: Mapping[str, Any]) -> dict[str, Agreement]:
    """Compare every routed contestant with PEFT at its first batch size, which needs no padding."""
    scores = {who: [float(pair[0]) for pair in pairs] for who, pairs in answers.items()}
    reference = next(who for who in scores if who.startswith("peft"))
    expected = items.choices(scores[reference])
    found = {}
    for who, own in scores.items():
        if who == reference or who.startswith("base"):
            continue
        equal = sum(a == b for a, b in zip(items.choices(own), expected, strict=True))
        gaps = [abs(a - b) for a, b in zip(own, scores[reference], strict=True)]
        found[who] = Agreement(items=len(expected), equal=equal, max_difference=max(gaps))
    return found


def _plain_forwards(lm: GksArrowLM, sizes: Sizes, seed: int) -> dict[str, Call]:
    model: Any = lm.model
    transformer = getattr(model, model.base_model_prefix)
    generator = torch.Generator().manual_seed(seed)
    calls: dict[str, Call] = {}
    for rows, tokens in sizes.forwards:
        ids = torch.randint(model.config.vocab_size, (rows, tokens), generator=generator)
        calls[f"{rows}x{tokens}"] = partial(
            transformer, input_ids=ids.to(lm.device), use_cache=False
        )
    return calls


def _forward(seconds: dict[str, Timing], together: EvaluationSet) -> PlainForward:
    rates = {}
    for shape, timing in seconds.items():
        rows, tokens = shape.split("x")
        rates[shape] = per_second(int(rows) * int(tokens), timing)
    best = max(rates, key=lambda shape: rates[shape])
    packed = per_second(together.distinct_tokens, together.seconds["packed"])
    return PlainForward(
        seconds=seconds,
        tokens_per_second=rates,
        best=best,
        packed_tokens_per_second=packed,
        share=packed / rates[best],
    )
