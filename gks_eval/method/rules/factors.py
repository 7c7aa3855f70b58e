"""Subtraction on the factors, as in the published code."""

from __future__ import annotations

from collections.abc import Sequence

from gks_eval.method.decorators import rule
from gks_eval.method.lora import LoraPair, average_factors, same_factors
from gks_eval.method.rules.rounding import without_rounding
from gks_eval.method.rules.scale import Scaled

__all__ = ["factors"]


@rule(
    paper="Bagherifard et al. 2025, https://aclanthology.org/2025.acl-short.54/",
    parameters=Scaled,
    equal_factors=True,
)
def factors(task: LoraPair, general: Sequence[LoraPair], parameters: Scaled) -> LoraPair:
    """``A = A_t - scale mean(A_g)``, ``B = B_t - scale mean(B_g)``.

    Rank and scaling are the task adapter's. The update ``(B_t - B_g)(A_t - A_g)`` holds the cross
    terms ``B_t A_g`` and ``B_g A_t`` and depends on the random starts of the A's. It is quadratic
    in ``scale``: twice the scale is not twice the change of the update, and a negative scale does
    not add what the positive scale subtracts.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ.
    """
    same_factors([task, *general], "rule=factors")
    mean = average_factors(general)
    scale = parameters.scale
    return without_rounding(task.A - scale * mean.A, task.B - scale * mean.B, task)
