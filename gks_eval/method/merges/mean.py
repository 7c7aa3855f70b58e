"""The mean of the updates."""

from __future__ import annotations

from gks_eval.method.declaration import Layer, Parameters
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair, stack

__all__ = ["mean"]


@merge(paper="Wortsman et al. 2022, https://arxiv.org/abs/2203.05482")
def mean(layer: Layer, parameters: Parameters) -> LoraPair:
    """The exact mean of the updates dW_e.

    The factors are stacked, so the rank is the sum of the ranks; ranks and scalings may differ.
    """
    del parameters
    return stack(layer.residuals, [1.0 / len(layer.residuals) for _ in layer.residuals])
