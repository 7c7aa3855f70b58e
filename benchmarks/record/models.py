"""Records of whole models."""

from __future__ import annotations

from typing import Literal

from benchmarks.record.timed import Ratio, Timing
from gks_eval.util.yaml import FrozenModel

__all__ = ["FullEvaluation", "FullModel", "ModelForward", "ModelRow", "Phase"]


Phase = Literal["prefill", "decode", "decode, captured"]


class ModelForward(FrozenModel):
    """One forward of a transformer without its head.

    Attributes:
        phase: ``prefill``; ``decode``, one token per row after `cached` ones; or ``decode,
            captured``, as a CUDA graph.
        batch: Rows.
        tokens: Tokens per row.
        cached: Tokens whose keys and values are cached.
        seconds: Of ``base`` and ``routed``; in the rows `model` also of ``peft``, and of ``hooks``
            and ``products``, see `benchmarks.floor`.
        routed_over_base: Cost of our routing.
    """

    phase: Phase
    batch: int
    tokens: int
    cached: int
    seconds: dict[str, Timing]
    routed_over_base: Ratio


class ModelRow(ModelForward):
    """A forward that PEFT runs too.

    Attributes:
        model: Description of the model.
        peft_over_base: Cost of PEFT's routing.
    """

    model: str
    peft_over_base: Ratio


class FullEvaluation(FrozenModel):
    """The packed scorer on random texts, and what follows for the paper's Table 1.

    Attributes:
        requests: Texts.
        distinct_tokens: Distinct token prefixes.
        computed_tokens: Tokens run, padding included.
        seconds: Of ``base`` and ``routed``.
        tokens_per_second: Distinct tokens of ``routed``.
        table_tokens: Distinct tokens of all sets of Table 1, as `benchmarks.table_one` assumes.
        table_settings: Its rows.
        table_minutes: Time of all settings at this speed, without loading and tokenising.
    """

    requests: int
    distinct_tokens: int
    computed_tokens: int
    seconds: dict[str, Timing]
    tokens_per_second: float
    table_tokens: float
    table_settings: int
    table_minutes: float


class FullModel(FrozenModel):
    """A model of Phi-3-mini's size with one kind of weights.

    Attributes:
        weights: ``bfloat16`` or ``nf4``.
        layers: Decoder layers.
        hidden: Width.
        forwards: Prefill and decoding.
        evaluation: The packed scorer.
        peak_bytes: Largest memory in use on the GPU; None on a CPU.
    """

    weights: Literal["bfloat16", "nf4"]
    layers: int
    hidden: int
    forwards: tuple[ModelForward, ...]
    evaluation: FullEvaluation
    peak_bytes: int | None
