"""Records of evaluations and generation."""

from __future__ import annotations

from benchmarks.record.timed import Ratio, Timing
from gks_eval.util.yaml import FrozenModel

__all__ = ["Agreement", "Evaluation", "EvaluationSet", "GenerationRow", "PlainForward"]


class Agreement(FrozenModel):
    """Agreement of predicted choices with the reference.

    Attributes:
        items: Number of items.
        equal: Number of items with the same predicted choice.
        max_difference: Largest difference of a log-likelihood.
    """

    items: int
    equal: int
    max_difference: float


class EvaluationSet(FrozenModel):
    """The log-likelihood requests of one set, or of several at once.

    Attributes:
        items: Items.
        requests: Choices of all items together.
        distinct_tokens: Distinct token prefixes, the least that must be computed.
        computed_tokens: Tokens that each contestant's transformer ran, padding included.
        seconds: By contestant, tokenisation included.
        peer_best: PEFT's fastest batch size here.
        peft_over_packed: Speed-up of ``packed`` over `peer_best`.
    """

    items: int
    requests: int
    distinct_tokens: int
    computed_tokens: dict[str, int]
    seconds: dict[str, Timing]
    peer_best: str
    peft_over_packed: Ratio


class PlainForward(FrozenModel):
    """The routed model's plain forward, without head, over several batch shapes.

    Attributes:
        seconds: By shape, ``rows x tokens``.
        tokens_per_second: By shape.
        best: The fastest shape.
        packed_tokens_per_second: Distinct tokens per second of the packed evaluation, which also
            tokenises, plans and computes the head.
        share: `packed_tokens_per_second` relative to the best shape's.
    """

    seconds: dict[str, Timing]
    tokens_per_second: dict[str, float]
    best: str
    packed_tokens_per_second: float
    share: float


class Evaluation(FrozenModel):
    """A collection of sets on one model.

    Attributes:
        name: ``demo`` or ``mix``.
        base: Base model.
        library: Adapters.
        experts: Number of experts.
        together: All sets in one call, as in lm-eval.
        alone: Each set in a separate call.
        agreement: Agreement with ``peft 1``, by contestant, over all sets together.
        forward: Upper bound for the packed scorer.
    """

    name: str
    base: str
    library: str
    experts: int
    together: EvaluationSet
    alone: dict[str, EvaluationSet]
    agreement: dict[str, Agreement]
    forward: PlainForward


class GenerationRow(FrozenModel):
    """Greedy `generate_until` of the same prompts.

    Attributes:
        model: Base model.
        kind: When a text ends.
        prompts: Number of prompts.
        batch: Batch size.
        seconds: Seconds of all prompts, by contestant: lm-eval's ``hf`` without adapters, ours
            with ``router=none``, and ours by setting; on a CPU processor time of all threads.
        over_hf: The same, relative to ``hf``.
        equal: Texts of ours with ``router=none`` that equal those of ``hf``.
    """

    model: str
    kind: str
    prompts: int
    batch: int
    seconds: dict[str, Timing]
    over_hf: dict[str, Ratio]
    equal: int
