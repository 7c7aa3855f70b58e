"""The routed update of one linear layer, in two matrix products.

With ``z = x [A_1; ...; A_E]^T`` and the coefficients c of a router, for every token:

- ``outputs`` (PEFT): ``y = sum_e c_e s_e B_e A_e x``, that is ``[c_1 z_1 | ...] @ [s_e B_e]^T``.
- ``factors`` (the authors, MTTL): ``y = s (sum_e c_e B_e)(sum_e c_e A_e) x``, that is
  ``[c_1 zbar | ...] @ [s B_e]^T`` with ``zbar = sum_e c_e z_e``.

If the coefficients sum to 1 and the rule is linear in the updates, the general part costs one
extra adapter instead of one per expert: ``sum_e c_e (dW_e - dW_g) = (sum_e c_e dW_e) - dW_g``.
Nothing is subtracted from an expert that does not update the layer, so dW_g is then multiplied by
the sum of the other experts' coefficients.

Nothing of size tokens x experts x D is ever allocated. `gks_eval.method.reference` computes the
same in plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from gks_eval.method.contexts import Contexts
from gks_eval.method.declaration import Layer, LayerRouter, Router, Tokens
from gks_eval.method.foreign import (
    check_coefficients,
    check_pairs,
    check_prepared,
    guarded,
    residuals_of,
)
from gks_eval.method.lora import LoraPair, same_factors
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import Setting
from gks_eval.method.tied import Tied, joined

__all__ = [
    "Measure",
    "RoutedWeights",
    "build",
    "residual_pairs",
    "routed_update",
    "tied_layer",
    "to_device",
    "wide_product",
]

Measure = Callable[[Sequence[LoraPair], Sequence[LoraPair], Sequence[LoraPair]], None]
"""Called with the experts, the general adapters and the residuals, in float32."""

WIDENED_AT_ONCE = 256
"""Tokens per block when a CPU converts 16-bit activations to float32 for the scores."""


@dataclass(frozen=True)
class RoutedWeights:
    """What one layer needs to add its routed update; M is the sum of all stacked ranks.

    Attributes:
        router: Chooses the coefficients.
        read: The stacked A's of the experts and of the general part, (M, K); in float32 with the
            router's directions on top, (N + M, K), so that one product serves both.
        write: (M, D), the stacked ``s B^T``; rows of the general part are negated.
        owner: (M_e,), the expert that each of the experts' rows belongs to.
        rank: Rank common to the experts, for ``factors``; 0 for ``outputs``.
        directions: (N, K) float32; None if the router has none, or if `read` holds them.
        experts: E.
        present: (E,) float32, 1 for experts that update the layer and 0 for the others; None if
            the general part is not subtracted once, or is subtracted from all experts.
        by_context: Whether the router makes one choice per context, not per token.
    """

    router: LayerRouter
    read: torch.Tensor
    write: torch.Tensor
    owner: torch.Tensor
    rank: int
    directions: torch.Tensor | None
    experts: int
    present: torch.Tensor | None = None
    by_context: bool = False

    @property
    def fused(self) -> int:
        """Return N where the router's directions are the first rows of `read`, else 0."""
        return self.read.shape[0] - self.write.shape[0]

    def nbytes(self) -> int:
        """Return the memory of all tensors, in bytes."""
        held = [self.read, self.write, self.owner]
        held += [one for one in (self.directions, self.present) if one is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


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
            them equal, or a method of another package fails or returns something else than its
            kind does.
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
        with guarded(rule, name):
            mixed, once = experts, rule.general_part(general, rule_parameters)
        check_pairs(rule, [once], experts[0].shape, name, "general part")
    if setting.combine == "factors":
        same_factors(mixed, "combine=factors")
    if router.basis is not None:
        with guarded(router, name):
            mixed = [router.basis(pair) for pair in mixed]
        check_pairs(router, mixed, experts[0].shape, name, "pair")
    parts_A = [pair.A for pair in mixed]
    parts_B = [pair.scaling * pair.B.T for pair in mixed]
    owner = torch.cat([torch.full((pair.rank,), e) for e, pair in enumerate(mixed)])
    present = None
    if once is not None:
        parts_A.append(once.A)
        parts_B.append(-once.B.T)
        if any(pair.missing for pair in experts):
            present = torch.tensor([float(not pair.missing) for pair in experts])

    shared = None if tied is None or setting.merge else tied_layer(tied, setting)
    layer = Layer(name, residuals, mixed, once, dtype.itemsize < 4, prepared, shared)
    with guarded(router, name):
        ready = router(layer, router_parameters)
    by_context = router_parameters.by_context
    check_prepared(router, ready, experts[0].shape[1], name, by_context=by_context)
    directions = ready.directions
    if directions is not None and dtype in (torch.float32, torch.float64):
        parts_A.insert(0, directions)
        directions = None
    weights = RoutedWeights(
        router=_moved(ready.choose, device),
        read=torch.cat(parts_A).to(device, dtype).contiguous(),
        write=torch.cat(parts_B).to(device, dtype).contiguous(),
        owner=owner.to(device),
        rank=mixed[0].rank if setting.combine == "factors" else 0,
        directions=None if directions is None else directions.to(device),
        experts=len(mixed),
        present=None if present is None else present.to(device),
        by_context=by_context,
    )
    if not ROUTERS.is_own(router):
        _probe(router, weights, name)
    return weights


def _probe(router: Router, weights: RoutedWeights, name: str) -> None:
    """Check the coefficients of another package's router on two random tokens."""
    generator = torch.Generator().manual_seed(0)
    x_TK = torch.randn(2, weights.read.shape[1], generator=generator)
    with torch.no_grad(), guarded(router, name):
        tokens = _tokens(x_TK.to(weights.read), weights)
        found = weights.router.coefficients(tokens)
    check_coefficients(router, found, len(x_TK), weights.experts, name)


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
            a method of another package fails or returns something else than its kind does.
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
    with guarded(merge, name):
        merged = merge(Layer(name, residuals), merge_parameters)
    check_pairs(merge, [merged], experts[0].shape, name, "merged adapter")
    if rule.after_merge is not None:
        with guarded(rule, name):
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


def routed_update(
    x_TK: torch.Tensor,
    weights: RoutedWeights,
    into: torch.Tensor | None = None,
    contexts: Contexts | None = None,
    name: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the routed update of each token, (T, D), and its coefficients, (T, E) or (1, E).

    Args:
        x_TK: The layer's input, in the type of ``weights.read``.
        weights: What `build` prepared.
        into: (T, D) of the same type, to which the update is added in place; it is returned
            instead of the update. Only without gradients.
        contexts: Which context each token belongs to, for one choice per context; None for one
            choice per token.
        name: The layer's name, under which `contexts` holds its choices.
    """
    tokens = _tokens(x_TK, weights)
    z_TM = tokens.inner
    stacked = weights.owner.shape[0]
    experts_TM = z_TM[:, :stacked]
    if contexts is None:
        c_TE = weights.router.coefficients(tokens)
    else:
        c_TE = contexts.coefficients(name, weights.router, tokens)
    if weights.rank:
        z_TER = experts_TM.reshape(-1, weights.experts, weights.rank)
        zbar_TR = (c_TE.unsqueeze(-1) * z_TER).sum(1)
        mixed_TM = (c_TE.unsqueeze(-1) * zbar_TR.unsqueeze(1)).flatten(1)
    else:
        mixed_TM = c_TE[:, weights.owner] * experts_TM
    once_TM = z_TM[:, stacked:]
    if weights.present is not None:
        once_TM = (c_TE @ weights.present).unsqueeze(1) * once_TM
    # Coefficients are float32: the products are rounded to the layer's type once, here.
    if torch.is_grad_enabled():
        # The backward pass still needs what writing in place would overwrite.
        z_TM = torch.cat([mixed_TM.to(z_TM.dtype), once_TM.to(z_TM.dtype)], dim=1)
    else:
        z_TM[:, :stacked] = mixed_TM
        if weights.present is not None:
            z_TM[:, stacked:] = once_TM
    if into is not None:
        return into.addmm_(z_TM, weights.write), c_TE
    return z_TM @ weights.write, c_TE


def _tokens(x_TK: torch.Tensor, weights: RoutedWeights) -> Tokens:
    """Return what the router reads of these tokens."""
    read_TN = x_TK @ weights.read.T
    if weights.directions is not None:
        scores = wide_product(x_TK, weights.directions)
    else:
        scores = read_TN[:, : weights.fused].float()
    return Tokens(x_TK, scores, read_TN[:, weights.fused :])


def wide_product(x_TK: torch.Tensor, directions_NK: torch.Tensor) -> torch.Tensor:
    """Return the scores of 16-bit activations, ``x . p`` in float32, (T, N)."""
    # A float32 copy of all tokens would not fit into a CPU's cache, and would be most of the
    # memory that routing needs.
    if torch.is_grad_enabled() or x_TK.device.type != "cpu" or x_TK.shape[0] <= WIDENED_AT_ONCE:
        return x_TK.float() @ directions_NK.T
    scores_TN = x_TK.new_empty((x_TK.shape[0], directions_NK.shape[0]), dtype=torch.float32)
    for start in range(0, x_TK.shape[0], WIDENED_AT_ONCE):
        part = slice(start, start + WIDENED_AT_ONCE)
        torch.mm(x_TK[part].float(), directions_NK.T, out=scores_TN[part])
    return scores_TN


def to_device(weights: RoutedWeights, device: torch.device) -> RoutedWeights:
    """Return the weights on another device."""
    return replace(
        weights,
        router=_moved(weights.router, device),
        read=weights.read.to(device),
        write=weights.write.to(device),
        owner=weights.owner.to(device),
        directions=None if weights.directions is None else weights.directions.to(device),
        present=None if weights.present is None else weights.present.to(device),
    )


def _moved(router: LayerRouter, device: torch.device | str) -> LayerRouter:
    """Return the router with its tensors on `device`."""
    assert not isinstance(router, type)
    tensors = {
        field.name: value.to(device)
        for field in fields(router)  # type: ignore[arg-type]
        if isinstance(value := getattr(router, field.name), torch.Tensor)
    }
    return replace(router, **tensors) if tensors else router  # type: ignore[type-var]
