"""The sum of the updates, times one weight."""

from __future__ import annotations

from pydantic import Field

from gks_eval.method.declaration import Layer, Parameters
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair, stack

__all__ = ["task_arithmetic"]


class Strength(Parameters):
    """Parameters of task arithmetic."""

    weight: float = Field(
        default=0.4, alias="lambda", allow_inf_nan=False, description="Weight of every update."
    )


@merge(paper="Ilharco et al. 2023, https://arxiv.org/abs/2212.04089", parameters=Strength)
def task_arithmetic(layer: Layer, parameters: Strength) -> LoraPair:
    """``dW = lambda sum(dW_e)``, exactly.

    The factors are stacked, so the rank is the sum of the ranks; ranks and scalings may differ. The
    default, 0.4, is the usual value without tuning; 1/E gives `mean`. PEFT's ``linear`` sums A's
    and B's instead, which gives another update.
    """
    return stack(layer.residuals, [parameters.weight for _ in layer.residuals])
