"""Distinguishes a residual from the rounding errors of its factors."""

from __future__ import annotations

from typing import Final

import torch

from gks_eval.method.lora import LoraPair

__all__ = ["ROUNDING", "without_rounding"]

ROUNDING: Final = 16
"""Differences below this many units in the last place of a factor are rounding errors."""


def without_rounding(A: torch.Tensor, B: torch.Tensor, task: LoraPair) -> LoraPair:
    """Return the pair with rows of A and columns of B that are rounding errors set to zero.

    If task and general agree, the difference is not always exactly zero; the remainder would give
    the router a meaningless prototype.
    """
    noise = ROUNDING * torch.finfo(A.dtype).eps
    dead_A = A.norm(dim=1, keepdim=True) <= noise * task.A.norm(dim=1, keepdim=True)
    dead_B = B.norm(dim=0) <= noise * task.B.norm(dim=0)
    return LoraPair(A.masked_fill(dead_A, 0.0), B.masked_fill(dead_B, 0.0), task.scaling)
