"""General knowledge subtraction: the residual of a task adapter, one function a rule.

GenKnowSub, eq. 1: ``LoRA_res = LoRA_task - LoRA_general``. What the minus sign means differs:

- `factors`: on the factors, ``A_t - A_g`` and ``B_t - B_g``, as published code has it. The update
  ``(B_t - B_g)(A_t - A_g)`` holds cross terms and depends on the random starts of the A's.
- `delta`: on the updates, ``dW_t - dW_g``, exactly.
- `orthogonal`: the general factors' span is projected out of the task's factors.

No rule writes to its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from gks_eval.config.setting import Rule
from gks_eval.lora import LoraPair, average_factors, same_factors, stack

__all__ = [
    "RULES",
    "general_update",
    "subtract",
    "subtract_delta",
    "subtract_factors",
    "subtract_orthogonal",
]

# Differences below this many units in the last place of a factor are rounding.
_ROUNDING: Final = 16


def subtract(task: LoraPair, general: Sequence[LoraPair], rule: Rule) -> LoraPair:
    """Return the residual of `task` after removing the mean of `general` by `rule`.

    Args:
        task: The task adapter at one layer.
        general: General adapters at the same layer; empty leaves `task` as it is.
        rule: One of `RULES`.

    Returns:
        A new pair; the same object when there is nothing to subtract.

    Raises:
        CompatibilityError: The rule needs equal shapes, ranks or scalings and finds others.
    """
    return RULES[rule](task, general) if general else task


def subtract_factors(task: LoraPair, general: Sequence[LoraPair]) -> LoraPair:
    """``A = A_t - mean(A_g)``, ``B = B_t - mean(B_g)``, scaling of the task; rank R."""
    same_factors([task, *general], "rule=factors")
    mean = average_factors(general)
    return _without_rounding(task.A - mean.A, task.B - mean.B, task)


def subtract_delta(task: LoraPair, general: Sequence[LoraPair]) -> LoraPair:
    """``dW = dW_t - mean(dW_g)`` exactly, as stacked factors of rank R + sum of R_g, scaling 1."""
    share = -1.0 / len(general)
    return stack([task, *general], [1.0, *(share for _ in general)])


def subtract_orthogonal(task: LoraPair, general: Sequence[LoraPair]) -> LoraPair:
    """``A = A_t (I - Q_A Q_A^T)``, ``B = (I - Q_B Q_B^T) B_t``, scaling of the task; rank R.

    Q_A (K, .) and Q_B (D, .) are orthonormal bases of the row space of the mean A_g and the column
    space of the mean B_g.
    """
    same_factors([task, *general], "rule=orthogonal")
    mean = average_factors(general)
    basis_A, basis_B = _range(mean.A.T), _range(mean.B)
    A, B = task.A.double(), task.B.double()
    return _without_rounding(
        (A - (A @ basis_A) @ basis_A.T).to(task.A.dtype),
        (B - basis_B @ (basis_B.T @ B)).to(task.B.dtype),
        task,
    )


def general_update(general: Sequence[LoraPair]) -> LoraPair:
    """Return the mean update of the general adapters as one stacked pair, scaling 1."""
    return stack(general, [1.0 / len(general) for _ in general])


RULES: Final[dict[str, Callable[[LoraPair, Sequence[LoraPair]], LoraPair]]] = {
    "factors": subtract_factors,
    "delta": subtract_delta,
    "orthogonal": subtract_orthogonal,
}


def _without_rounding(A: torch.Tensor, B: torch.Tensor, task: LoraPair) -> LoraPair:
    """Return the pair with rows of A and columns of B that are mere rounding set to zero.

    Where task and general agree, the difference is not always exactly zero; what is left would be
    a direction out of nothing for the router's prototype.
    """
    noise = _ROUNDING * torch.finfo(A.dtype).eps
    dead_A = A.norm(dim=1, keepdim=True) <= noise * task.A.norm(dim=1, keepdim=True)
    dead_B = B.norm(dim=0) <= noise * task.B.norm(dim=0)
    return LoraPair(A.masked_fill(dead_A, 0.0), B.masked_fill(dead_B, 0.0), task.scaling)


def _range(matrix: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the column space, in float64.

    By the SVD rather than QR: of rank-deficient columns (an untrained B is zero) QR returns
    directions that are not in the space at all.
    """
    left: torch.Tensor
    left, singular, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    noise = _ROUNDING * torch.finfo(matrix.dtype).eps
    return left[:, singular > noise * singular.max()]
