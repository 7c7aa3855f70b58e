"""Distinguishes a residual from the rounding errors of its factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from gks_eval.method.lora import LoraPair

__all__ = ["ROUNDING", "stacked", "without_rounding"]

ROUNDING: Final = 16
"""Differences below this many units in the last place of a factor are rounding errors."""


def stacked(tasks: Sequence[LoraPair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of task adapters of one rank, (E, R, K) and (E, D, R)."""
    return torch.stack([task.A for task in tasks]), torch.stack([task.B for task in tasks])


def without_rounding(
    A_ERK: torch.Tensor, B_EDR: torch.Tensor, tasks: Sequence[LoraPair]
) -> list[LoraPair]:
    """Return residuals with rows of A and columns of B that are rounding errors set to zero.

    If task and general agree, the difference is not always exactly zero; the remainder would give
    the router a meaningless prototype.

    Args:
        A_ERK: Of the residuals; it is written to.
        B_EDR: Of the residuals; it is written to.
        tasks: The task adapters.
    """
    noise = ROUNDING * torch.finfo(A_ERK.dtype).eps
    for found, own, dim in zip((A_ERK, B_EDR), stacked(tasks), (2, 1), strict=True):
        sizes = own.norm(dim=dim, keepdim=True)
        found.masked_fill_(found.norm(dim=dim, keepdim=True) <= noise * sizes, 0.0)
    return [LoraPair(A, B, task.scaling) for A, B, task in zip(A_ERK, B_EDR, tasks, strict=True)]
