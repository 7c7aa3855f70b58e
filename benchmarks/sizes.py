"""Sizes of the benchmark's cases: the real ones, and small ones that take seconds.

Phi-3-mini's attention has linear layers 3072 -> 9216 (qkv) and 3072 -> 3072 (o), Phi-2's
2560 -> 2560. SmolLM2-135M's is 576 wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ASKED", "FULL", "QUICK", "ROWS", "RouterCase", "Sizes", "Slice"]

ROWS = (
    "layer", "router", "experts", "model", "evaluation", "startup", "growth",
    "generation", "library", "full",
)  # fmt: skip
ASKED: Final = ("generation", "library", "full")
"""Rows that run only if they are named."""
Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Slice:
    """A Phi-3 with random weights: full width, few layers, a small vocabulary."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class RouterCase:
    """A linear layer, K -> D, with adapters of one rank and the rule of the subtraction."""

    width_in: int
    width_out: int
    rank: int
    rule: str


@dataclass(frozen=True)
class Sizes:
    """The cases of a run.

    Attributes:
        experts: Experts of the layers and the slice; one general adapter is subtracted.
        rank: Rank of these adapters.
        layers: (K, D) of the layer rows.
        layer_tokens: T of the layer rows.
        many_tokens: Layer rows with more tokens use a third of the rounds.
        router_cases: Layers of the router rows.
        router_tokens: T of the router rows.
        many_experts: Numbers of experts of the experts rows.
        many_layers: (K, D) of their linear layers.
        many_expert_tokens: Their T.
        one_layer: Their transformer layer.
        libraries: Numbers of experts of the library rows.
        slice: The model of Phi-3's width.
        full: The model of the rows `full`.
        full_prefill: (rows, tokens) of its forwards.
        full_items: Items of its evaluation.
        prefill: (rows, tokens) of whole forwards.
        cached: Tokens before the one that is decoded.
        batch_sizes: Batch sizes of HFLM.
        forwards: (rows, tokens) of the plain forwards that the packed scorer is compared with.
        generated: Prompts of the generation rows, and new tokens per prompt.
        growth_layer: (K, D) of the layer.
        growth_tokens: T of the layer.
        growth_experts: Numbers of experts.
        growth_items: Items of the evaluations.
        growth_choices: Choices per item.
        growth_context: Tokens of context with these choices.
        growth_contexts: Tokens of context, with 4 choices.
        least_seconds: A fast call is repeated for this long per measurement.
    """

    experts: int
    rank: int
    layers: Shapes
    layer_tokens: tuple[int, ...]
    many_tokens: int
    router_cases: tuple[RouterCase, ...]
    router_tokens: int
    many_experts: tuple[int, ...]
    many_layers: Shapes
    many_expert_tokens: int
    one_layer: Slice
    libraries: tuple[int, ...]
    slice: Slice
    full: Slice
    full_prefill: Shapes
    full_items: int
    prefill: Shapes
    cached: int
    batch_sizes: tuple[int, ...]
    forwards: Shapes
    generated: tuple[int, int]
    growth_layer: tuple[int, int]
    growth_tokens: int
    growth_experts: tuple[int, ...]
    growth_items: int
    growth_choices: tuple[int, ...]
    growth_context: int
    growth_contexts: tuple[int, ...]
    least_seconds: float


FULL = Sizes(
    experts=10,
    rank=4,
    layers=((3072, 9216), (3072, 3072), (2560, 2560)),
    layer_tokens=(1, 512, 4096),
    many_tokens=2048,
    router_cases=tuple(
        RouterCase(width_in, width_out, rank, rule)
        for width_in, width_out in ((3072, 9216), (3072, 3072), (576, 576))
        for rank in (4, 16)
        for rule in ("factors", "delta")
    ),
    router_tokens=512,
    many_experts=(10, 64, 256, 1000),
    many_layers=((3072, 9216), (3072, 3072), (576, 576)),
    many_expert_tokens=512,
    one_layer=Slice(hidden=3072, intermediate=8192, heads=32, layers=1, vocabulary=1000),
    libraries=(100, 1000),
    slice=Slice(hidden=3072, intermediate=8192, heads=32, layers=2, vocabulary=1000),
    full=Slice(hidden=3072, intermediate=8192, heads=32, layers=32, vocabulary=32064),
    full_prefill=((1, 512), (8, 512), (32, 512)),
    full_items=1000,
    prefill=((1, 512), (4, 256)),
    cached=256,
    batch_sizes=(1, 8, 32),
    forwards=((1, 128), (1, 256), (1, 512), (4, 128), (8, 64), (4, 256), (8, 128), (16, 64)),
    generated=(16, 32),
    growth_layer=(3072, 9216),
    growth_tokens=128,
    growth_experts=(2, 4, 8, 16, 32, 64),
    growth_items=2,
    growth_choices=(1, 2, 4, 8, 12, 20),
    growth_context=128,
    growth_contexts=(32, 128, 512, 1024, 2048),
    least_seconds=0.1,
)
QUICK = Sizes(
    experts=4,
    rank=4,
    layers=((64, 192), (64, 64)),
    layer_tokens=(1, 16),
    many_tokens=8,
    router_cases=(RouterCase(64, 192, 4, "factors"), RouterCase(64, 64, 4, "delta")),
    router_tokens=16,
    many_experts=(4, 12),
    many_layers=((64, 192),),
    many_expert_tokens=16,
    one_layer=Slice(hidden=64, intermediate=128, heads=4, layers=1, vocabulary=300),
    libraries=(4, 12),
    slice=Slice(hidden=64, intermediate=128, heads=4, layers=2, vocabulary=300),
    full=Slice(hidden=64, intermediate=128, heads=4, layers=2, vocabulary=300),
    full_prefill=((1, 16), (2, 8)),
    full_items=3,
    prefill=((1, 16), (2, 8)),
    cached=8,
    batch_sizes=(1, 4),
    forwards=((1, 16), (4, 16)),
    generated=(3, 4),
    growth_layer=(64, 64),
    growth_tokens=8,
    growth_experts=(2, 4),
    growth_items=2,
    growth_choices=(1, 3),
    growth_context=16,
    growth_contexts=(8, 32),
    least_seconds=0.0,
)
