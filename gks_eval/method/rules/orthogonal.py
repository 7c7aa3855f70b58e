"""Projection of the general adapters' span out of a task adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.method.decorators import rule
from gks_eval.method.lora import LoraPair, average_factors, one_of_each, same_factors
from gks_eval.method.rules.rounding import ROUNDING, stacked, without_rounding
from gks_eval.method.rules.scale import Scaled

__all__ = ["orthogonal"]


def _of_all(
    tasks: Sequence[LoraPair], general: Sequence[LoraPair], parameters: Scaled
) -> list[LoraPair]:
    for task in one_of_each(tasks):
        same_factors([task, *general], "rule=orthogonal")
    mean = average_factors(general)
    basis_A, basis_B = _range(mean.A.T), _range(mean.B)
    A_ERK, B_EDR = (factor.double() for factor in stacked(tasks))
    return without_rounding(
        (A_ERK - parameters.scale * (A_ERK @ basis_A) @ basis_A.T).to(tasks[0].A.dtype),
        (B_EDR - parameters.scale * basis_B @ (basis_B.T @ B_EDR)).to(tasks[0].B.dtype),
        tasks,
    )


@rule(
    paper="an option of the authors' code, https://github.com/saharsamr/Modular-LLM",
    parameters=Scaled,
    equal_factors=True,
    of_all=_of_all,
)
def orthogonal(task: LoraPair, general: Sequence[LoraPair], parameters: Scaled) -> LoraPair:
    """``A = A_t (I - scale Q_A Q_A^T)``, ``B = (I - scale Q_B Q_B^T) B_t``.

    Q_A (K, .) and Q_B (D, .) are orthonormal bases of the row space of mean(A_g) and the column
    space of mean(B_g). Rank and scaling are the task adapter's. A scale of 1 removes what
    lies in these spaces, 2 reflects it, and a negative scale enlarges it.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ.
    """
    return _of_all([task], general, parameters)[0]


def _range(matrix: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the column space, in float64.

    It uses the SVD, not QR: for rank-deficient columns (an untrained B is zero) QR returns
    directions outside of the space.
    """
    left: torch.Tensor
    left, singular, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    noise = ROUNDING * torch.finfo(matrix.dtype).eps
    return left[:, singular > noise * singular.max()]
