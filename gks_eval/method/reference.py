"""A slow and simple version of the routed update, to test the fast one.

It takes one token and one expert at a time, with every update as a full matrix in float64. It
shares the declarations of rules, merges and routers with `gks_eval.method.routed`, but none of its
optimisations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.method.declaration import ContextRouter, Layer, Tokens
from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting

__all__ = ["reference_update"]


def reference_update(
    x_TK: torch.Tensor,
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    setting: Setting,
    name: str = "",
    prepared: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the routed update, (T, D) float64, and the coefficients, (T, E) float64.

    Args:
        x_TK: The layer's input.
        experts: The task adapters at one layer.
        general: The general adapters whose mean is subtracted; empty for none.
        setting: Rule, combine, router or merge, and their parameters.
        name: The layer's name.
        prepared: The vectors of the experts, for a router that needs them.

    With one choice per context, all tokens are one context.
    """
    rule, rule_parameters = setting.rule_method()
    residuals = rule.residuals(experts, general, rule_parameters)
    if setting.merge:
        merge, merge_parameters = setting.merge_method()
        merged = merge(Layer(name, residuals), merge_parameters)
        if rule.after_merge is not None:
            merged = rule.after_merge(merged, experts, rule_parameters)
        residuals = [merged]
    router, router_parameters = setting.router_method()
    layer = Layer(name, [pair.to(torch.float32) for pair in residuals], prepared=prepared)
    ready = router(layer, router_parameters)
    once = torch.zeros(residuals[0].shape, dtype=torch.float64)
    mixed = residuals
    once_suffices = bool(general) and router.sums_to_one and not setting.merge
    part = rule.general_part if once_suffices else None
    if part is not None and setting.combine == "factors":
        # A linear rule mixes the factors of the task adapters and subtracts the general part.
        mixed = list(experts)
        once = part(general, rule_parameters).to(torch.float64).delta()
    if router.basis is not None:
        mixed = router.basis(mixed)
    tokens = []
    for x in x_TK.float():
        scores = torch.zeros(0, 0)
        if ready.directions is not None:
            scores = (ready.directions @ x).unsqueeze(0)
        inner = torch.cat([pair.A.float() @ x for pair in residuals]).unsqueeze(0)
        tokens.append(Tokens(x.unsqueeze(0), scores, inner))
    if router_parameters.by_context:
        assert isinstance(ready.choose, ContextRouter)
        scores_TE = torch.cat([ready.choose.scores(token) for token in tokens]).double()
        mean = scores_TE.mean(0, keepdim=True)
        shares = [ready.choose.chosen(mean)[0].double() for _ in tokens]
    else:
        shares = [ready.choose.coefficients(token)[0].double() for token in tokens]
    updates = []
    for x, share in zip(x_TK.float(), shares, strict=True):
        wide = x.double()
        pairs = [pair.to(torch.float64) for pair in mixed]
        if setting.combine == "outputs" or len(pairs) == 1:
            update = sum(c * (pair.delta() @ wide) for c, pair in zip(share, pairs, strict=True))
        else:
            A = sum(c * pair.A for c, pair in zip(share, pairs, strict=True))
            B = sum(c * pair.B for c, pair in zip(share, pairs, strict=True))
            update = pairs[0].scaling * (B @ (A @ wide))
        updates.append(update - once @ wide)
    return torch.stack(updates), torch.stack(shares)
