"""Row `experts`: how a routed layer's cost grows with the library, next to the base's.

A linear layer is timed with its base's product, and each plan of `gks_eval.method.mixing.plan` also
by itself, so that the chosen plan can be compared with the fastest. A whole transformer layer of
Phi-3's width is timed with its qkv_proj and o_proj routed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.random_library import random_pairs
from benchmarks.record import ExpertsRow
from benchmarks.sizes import Sizes
from benchmarks.timing import Call, ratio, synchroniser, time_interleaved
from benchmarks.whole_model import phi3_slice
from gks_eval.library.fit import linear_shapes
from gks_eval.method.build import build
from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.mixing.plan import Plan, plan_of
from gks_eval.method.routed import add_update
from gks_eval.method.setting import Setting
from gks_eval.method.weights import RoutedWeights

__all__ = ["expert_rows"]

SETTING = Setting.from_arguments(router="arrow", rule="factors", combine="outputs", top_k=3)


@torch.no_grad()
def expert_rows(
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> list[ExpertsRow]:
    """Measure every number of experts at every linear layer and in the transformer layer."""
    how: dict[str, Any] = {
        "rounds": rounds,
        "least_seconds": sizes.least_seconds,
        "synchronise": synchroniser(device),
    }
    base = phi3_slice(sizes.one_layer, device, dtype, seed)
    rows = []
    for experts in sizes.many_experts:
        for width_in, width_out in sizes.many_layers:
            report(f"{experts} experts, {width_in}->{width_out}")
            shapes = {"linear": (width_out, width_in)}
            weights = _weights(shapes, experts, sizes.rank, device, dtype, seed)["linear"]
            rows.append(_linear(weights, experts, sizes.many_expert_tokens, seed, how))
        report(f"{experts} experts, transformer layer")
        rows.append(_transformer(base, experts, sizes, device, dtype, seed, how))
    return rows


def _weights(
    shapes: dict[str, tuple[int, int]],
    experts: int,
    rank: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, RoutedWeights]:
    generator = torch.Generator().manual_seed(seed)
    *adapters, general = (random_pairs(shapes, rank, generator) for _ in range(experts + 1))
    return {
        name: build(
            [adapter[name] for adapter in adapters],
            [general[name]],
            SETTING,
            dtype=dtype,
            device=device,
            name=name,
        )
        for name in shapes
    }


def _linear(
    weights: RoutedWeights, experts: int, tokens: int, seed: int, how: dict[str, Any]
) -> ExpertsRow:
    width_in, width_out = weights.read.shape[1], weights.write.shape[1]
    generator = torch.Generator().manual_seed(seed)
    x_TK = torch.randn(tokens, width_in, generator=generator).to(weights.read)
    W_DK = torch.randn(width_out, width_in, generator=generator).to(weights.read)
    into_TD = x_TK.new_zeros(tokens, width_out)

    def routed() -> torch.Tensor:
        return add_update(x_TK, weights, x_TK @ W_DK.T)[0]

    def by(plan: Plan) -> Call:
        return lambda: add_update(x_TK, weights, into_TD, plan=plan)

    calls: dict[str, Call] = {"base": lambda: x_TK @ W_DK.T, "routed": routed}
    plan = plan_of(tokens, weights)
    plans: tuple[Plan, ...] = (plan,)
    if weights.read.device.type == "cpu" and weights.sparse:
        plans = ("all", "write chosen", "chosen")
    seconds = time_interleaved(calls | {one: by(one) for one in plans}, **how)
    fastest = min(plans, key=lambda one: seconds[one].median)
    return ExpertsRow(
        layer=f"{width_in}->{width_out}",
        experts=experts,
        tokens=tokens,
        seconds=seconds,
        routed_over_base=ratio(seconds["routed"], seconds["base"]),
        plan=plan,
        plan_over_fastest=ratio(seconds[plan], seconds[fastest]),
    )


def _transformer(
    base: nn.Module,
    experts: int,
    sizes: Sizes,
    device: str,
    dtype: torch.dtype,
    seed: int,
    how: dict[str, Any],
) -> ExpertsRow:
    routed = copy.deepcopy(base)
    shapes = {
        name: shape
        for name, shape in linear_shapes(routed).items()
        if name.endswith(("qkv_proj", "o_proj"))
    }
    for name, weights in _weights(shapes, experts, sizes.rank, device, dtype, seed).items():
        RoutedUpdate(routed.get_submodule(name), name).weights = weights
    generator = torch.Generator().manual_seed(seed)
    tokens = sizes.many_expert_tokens
    ids_1T = torch.randint(sizes.one_layer.vocabulary, (1, tokens), generator=generator).to(device)

    def forward(model: Any) -> Call:
        return lambda: model.model(input_ids=ids_1T, use_cache=False)[0]

    seconds = time_interleaved({"base": forward(base), "routed": forward(routed)}, **how)
    return ExpertsRow(
        layer=f"transformer layer, width {sizes.one_layer.hidden}",
        experts=experts,
        tokens=tokens,
        seconds=seconds,
        routed_over_base=ratio(seconds["routed"], seconds["base"]),
    )
