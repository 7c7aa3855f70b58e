"""Row `router`: the routed update of one linear layer under every router, in the same rounds.

The routers differ in the directions that are multiplied with a token and in how scores become
coefficients; the rest of the update is the same. On a CPU the seconds are processor time of all
threads, on which other load has little influence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from benchmarks.random_library import random_pairs
from benchmarks.record import Ratio, RouterRow, Timing
from benchmarks.sizes import RouterCase, Sizes
from benchmarks.timing import Call, ratio, synchroniser, time_interleaved
from gks_eval.method.build import build
from gks_eval.method.routed import add_update
from gks_eval.method.setting import Setting

__all__ = ["ROUTERS", "router_rows"]

ROUTERS: Final = ("uniform", "arrow", "spectr", "norm", "lag", "mean_activation", "phatgoose")


@torch.no_grad()
def router_rows(
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> list[RouterRow]:
    """Measure every case."""
    rows = []
    for case in sizes.router_cases:
        report(f"routers, {case.width_in}->{case.width_out}, rank {case.rank}, {case.rule}")
        generator = torch.Generator().manual_seed(seed)
        x_TK = torch.randn(sizes.router_tokens, case.width_in, generator=generator)
        calls = _calls(case, sizes.experts, x_TK.to(device, dtype), generator)
        seconds = time_interleaved(
            calls,
            rounds,
            least_seconds=sizes.least_seconds,
            synchronise=synchroniser(device),
            clock=time.process_time if device == "cpu" else time.perf_counter,
        )
        rows.append(
            RouterRow(
                width_in=case.width_in,
                width_out=case.width_out,
                tokens=len(x_TK),
                rank=case.rank,
                rule=case.rule,
                seconds=seconds,
                over_uniform=_ratios(seconds, "uniform"),
                over_arrow=_ratios(seconds, "arrow"),
            )
        )
    return rows


def _ratios(seconds: dict[str, Timing], under: str) -> dict[str, Ratio]:
    return {name: ratio(over, seconds[under]) for name, over in seconds.items()}


def _calls(
    case: RouterCase, experts: int, x_TK: torch.Tensor, generator: torch.Generator
) -> dict[str, Call]:
    shapes = {"linear": (case.width_out, case.width_in)}
    *pairs, general = (
        random_pairs(shapes, case.rank, generator)["linear"] for _ in range(experts + 1)
    )
    prepared_EK = torch.randn(experts, case.width_in, generator=generator)
    calls: dict[str, Call] = {}
    for router in ROUTERS:
        setting = Setting.from_arguments(
            router=router, subtract="avg", rule=case.rule, combine="outputs"
        )
        weights = build(
            pairs, [general], setting, dtype=x_TK.dtype, device=x_TK.device, prepared=prepared_EK
        )
        calls[router] = partial(add_update, x_TK, weights)
    return calls
