"""Preparing one layer: residuals, router and stacked factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gks_eval.method.declaration import Layer, Router
from gks_eval.method.foreign import check_pairs, guarded, residuals_of
from gks_eval.method.foreign_routers import check_choose, check_prepared
from gks_eval.method.lora import LoraPair, same_factors
from gks_eval.method.mixing.products import read_all
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import Setting
from gks_eval.method.tied import Tied, joined
from gks_eval.method.weights import RoutedWeights, moved, rows_of, suited

__all__ = [
    "Measure",
    "build",
    "residual_pairs",
    "tied_layer",
]

Measure = Callable[[Sequence[LoraPair], Sequence[LoraPair], Sequence[LoraPair]], None]
"""Called with the experts, the general adapters and the residuals, in float32."""


def build(
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    setting: Setting,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    name: str = "",
    measure: Measure | None = None,
    prepared: torch.Tensor | None = None,
    tied: Tied | None = None,
) -> RoutedWeights:
    """Prepare one layer.

    Args:
        experts: The task adapters at this layer; a single one if the setting names an expert.
        general: The general adapters whose mean is subtracted; empty for none.
        setting: Rule, combine, router or merge, and their parameters.
        dtype: Type of the layer's activations. Scores are always float32: in 16-bit layers the
            router's directions stay in float32 and have their own product.
        device: Where the layer computes.
        name: The layer's name.
        measure: As for `residual_pairs`.
        prepared: The vectors of the experts, for a router that needs them, see `Layer`.
        tied: The layers that share their prototypes with this one.

    Raises:
        CompatibilityError: Ranks or scalings differ where the rule, merge or combination needs
            them equal, or a method of another package fails or returns a value that its kind
            does not allow.
        UsageError: The setting names a rule, router or merge that does not exist.
    """
    experts = [pair.to(torch.float32) for pair in experts]
    general = [pair.to(torch.float32) for pair in general]
    rule, rule_parameters = setting.rule_method()
    residuals = residual_pairs(experts, general, setting, name, measure)
    mixed, once = residuals, None
    router, router_parameters = setting.router_method()
    if general and rule.general_part is not None and router.sums_to_one and not setting.merge:
        # The mixture is taken over the task adapters and the general part subtracted once; only
        # the router sees the residuals.
        with guarded(rule, name, general):
            mixed, once = experts, rule.general_part(general, rule_parameters)
        check_pairs(rule, [once], experts[0].shape, name, "general part")
    if setting.combine == "factors":
        same_factors(mixed, "combine=factors")
    if router.basis is not None:
        with guarded(router, name, mixed):
            mixed = router.basis(mixed)
        check_pairs(router, mixed, experts[0].shape, name, "pair")
    parts_A = [pair.A for pair in mixed]
    parts_B = [pair.B.T for pair in mixed]
    ranks = [pair.rank for pair in mixed]
    scalings = torch.tensor([pair.scaling for pair in mixed])
    scalings = scalings.repeat_interleave(torch.tensor(ranks))
    present = None
    if once is not None:
        parts_A.append(once.A)
        parts_B.append(once.B.T)
        scalings = torch.cat([scalings, torch.full((once.rank,), -once.scaling)])
        if any(pair.missing for pair in experts):
            present = torch.tensor([float(not pair.missing) for pair in experts])

    shared = None if tied is None or setting.merge else tied_layer(tied, setting)
    layer = Layer(name, residuals, mixed, once, dtype.itemsize < 4, prepared, shared)
    with guarded(router, name, layer.read):
        ready = router(layer, router_parameters)
        by_context = router_parameters.by_context
    check_prepared(router, ready, experts[0].shape[1], name, by_context=by_context)
    directions = ready.directions
    if directions is not None and dtype in (torch.float32, torch.float64):
        parts_A.append(directions)
        directions = None
    weights = suited(
        RoutedWeights(
            router=moved(ready.choose, device),
            read=torch.cat(parts_A).to(device, dtype),
            write=torch.cat(parts_B).mul_(scalings[:, None]).to(device, dtype),
            rows=moved(rows_of(ranks), device),
            stacked=sum(ranks),
            rank=ranks[0] if setting.combine == "factors" else 0,
            directions=None if directions is None else directions.to(device),
            experts=len(mixed),
            present=None if present is None else present.to(device),
            by_context=by_context,
        )
    )
    if not ROUTERS.is_own(router):
        _probe(router, weights, name)
    return weights


def _probe(router: Router, weights: RoutedWeights, name: str) -> None:
    """Check another package's router on two and on three random tokens."""
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3):
        x_TK = torch.randn(count, weights.read.shape[1], generator=generator)
        with torch.no_grad():
            tokens = read_all(x_TK.to(weights.read), weights)
        experts, by_context = weights.experts, weights.by_context
        check_choose(router, weights.router, tokens, experts, name, by_context=by_context)


def residual_pairs(
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    setting: Setting,
    name: str = "",
    measure: Measure | None = None,
) -> list[LoraPair]:
    """Return the residuals of all experts at one layer, or the pair that a merge makes of them.

    Args:
        experts: The task adapters.
        general: The general adapters whose mean is subtracted; empty for none.
        setting: Rule and merge, and their parameters.
        name: The layer's name.
        measure: Called with the experts, the general adapters and the residuals.

    Returns:
        Pairs in float32.

    Raises:
        CompatibilityError: Ranks or scalings differ where the rule or merge needs them equal, or
            a method of another package fails or returns a value that its kind does not allow.
    """
    experts = [pair.to(torch.float32) for pair in experts]
    general = [pair.to(torch.float32) for pair in general]
    rule, rule_parameters = setting.rule_method()
    residuals = residuals_of(rule, experts, general, rule_parameters, name)
    if measure is not None:
        measure(experts, general, residuals)
    if not setting.merge:
        return residuals
    merge, merge_parameters = setting.merge_method()
    with guarded(merge, name, residuals):
        merged = merge(Layer(name, residuals), merge_parameters)
    check_pairs(merge, [merged], experts[0].shape, name, "merged adapter")
    if rule.after_merge is not None:
        with guarded(rule, name, experts):
            merged = rule.after_merge(merged, experts, rule_parameters)
        check_pairs(rule, [merged], experts[0].shape, name, "merged adapter")
    return [merged]


def tied_layer(tied: Tied, setting: Setting) -> Layer:
    """Return the joined residuals of layers that share their prototypes, as one layer.

    Raises:
        CompatibilityError: As `residual_pairs`.
    """
    by_layer = [
        residual_pairs(experts, general, setting, name) for name, experts, general in tied.layers
    ]
    return Layer(tied.name, [joined(tied.op, pairs) for pairs in zip(*by_layer, strict=True)])
