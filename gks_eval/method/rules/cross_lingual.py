"""The authors' cross-lingual experts: part of the residual, part of a target language's adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from gks_eval.method.declaration import TARGET
from gks_eval.method.decorators import rule
from gks_eval.method.lora import LoraPair, same_factors
from gks_eval.method.rules.factors import factors
from gks_eval.method.rules.scale import Scaled

__all__ = ["cross_lingual"]


class CrossLingual(Scaled):
    """Parameters of the rule."""

    target: str | None = Field(
        default=None, description="The general adapter that is added, such as de; must be given."
    )
    keep: float = Field(default=0.5, allow_inf_nan=False, description="Multiplies the residual.")
    add: float = Field(default=0.5, allow_inf_nan=False, description="Multiplies the target.")


@rule(
    paper="an option of the authors' code, https://github.com/saharsamr/Modular-LLM",
    parameters=CrossLingual,
    needs=TARGET,
    equal_factors=True,
)
def cross_lingual(
    task: LoraPair, general: Sequence[LoraPair], parameters: CrossLingual
) -> LoraPair:
    """``A = keep (A_t - scale mean(A_g)) + add A_target``, B likewise.

    The last pair of `general` is the target, the others are subtracted as by ``rule=factors``.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ.
    """
    *subtracted, target = general
    same_factors([task, *general], "rule=cross_lingual")
    residual = factors(task, subtracted, parameters)  # the task itself if none is subtracted
    keep, add = parameters.keep, parameters.add
    return replace(
        residual, A=keep * residual.A + add * target.A, B=keep * residual.B + add * target.B
    )
