"""Exact subtraction of updates."""

from __future__ import annotations

from collections.abc import Sequence

from gks_eval.method.decorators import rule
from gks_eval.method.lora import LoraPair, stack
from gks_eval.method.rules.scale import Scaled

__all__ = ["delta", "mean_update"]


def mean_update(general: Sequence[LoraPair], parameters: Scaled) -> LoraPair:
    """Return ``scale mean(dW_g)`` as one stacked pair, scaling 1.

    A general adapter that lacks the layer counts in the mean and adds no rank.
    """
    present = [pair for pair in general if not pair.missing] or general[:1]
    return stack(present, [parameters.scale / len(general) for _ in present])


@rule(
    paper="Bagherifard et al. 2025, eq. 1, https://aclanthology.org/2025.acl-short.54/",
    parameters=Scaled,
    general_part=mean_update,
)
def delta(task: LoraPair, general: Sequence[LoraPair], parameters: Scaled) -> LoraPair:
    """``dW = dW_t - scale mean(dW_g)``, exactly.

    The factors are stacked, with rank R + sum of R_g and scaling 1; ranks and scalings may differ.

    Raises:
        CompatibilityError: The adapters are for layers of different shape.
    """
    return stack([task, mean_update(general, parameters)], [1.0, -1.0])
