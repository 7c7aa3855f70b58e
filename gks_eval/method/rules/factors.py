"""Subtraction on the factors, as published code has it."""

from __future__ import annotations

from collections.abc import Sequence

from gks_eval.method.declaration import Parameters, rule
from gks_eval.method.lora import LoraPair, average_factors, same_factors
from gks_eval.method.rules.rounding import without_rounding

__all__ = ["factors"]


@rule(
    paper="Bagherifard et al. 2025, https://aclanthology.org/2025.acl-short.54/",
    equal_factors=True,
)
def factors(task: LoraPair, general: Sequence[LoraPair], parameters: Parameters) -> LoraPair:
    """``A = A_t - mean(A_g)``, ``B = B_t - mean(B_g)``.

    Rank R and scaling of the task. The update ``(B_t - B_g)(A_t - A_g)`` holds the cross terms
    ``B_t A_g`` and ``B_g A_t`` and depends on the random starts of the A's.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ.
    """
    del parameters
    same_factors([task, *general], "rule=factors")
    mean = average_factors(general)
    return without_rounding(task.A - mean.A, task.B - mean.B, task)
