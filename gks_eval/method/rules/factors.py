"""Subtraction on the factors, as in the published code."""

from __future__ import annotations

from collections.abc import Sequence

from gks_eval.method.decorators import rule
from gks_eval.method.lora import LoraPair, average_factors, one_of_each, same_factors
from gks_eval.method.rules.rounding import stacked, without_rounding
from gks_eval.method.rules.scale import Scaled

__all__ = ["factors"]


def _of_all(
    tasks: Sequence[LoraPair], general: Sequence[LoraPair], parameters: Scaled
) -> list[LoraPair]:
    for task in one_of_each(tasks):
        same_factors([task, *general], "rule=factors")
    mean, scale = average_factors(general), parameters.scale
    A_ERK, B_EDR = stacked(tasks)
    return without_rounding(A_ERK - scale * mean.A, B_EDR - scale * mean.B, tasks)


@rule(
    paper="Bagherifard et al. 2025, https://aclanthology.org/2025.acl-short.54/",
    parameters=Scaled,
    equal_factors=True,
    of_all=_of_all,
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
    return _of_all([task], general, parameters)[0]
