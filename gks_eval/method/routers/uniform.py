"""Uniform: every expert with the same share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gks_eval.method.declaration import Parameters, Prepared, Tokens, router
from gks_eval.method.lora import LoraPair

__all__ = ["Fixed", "uniform"]


@dataclass(frozen=True)
class Fixed:
    """The same coefficients, (E,) float32, for every token."""

    shares: torch.Tensor

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (1, E)."""
        del tokens
        return self.shares.unsqueeze(0)


@router(paper="the mean of all experts, a baseline of Ostapenko et al. 2024")
def uniform(residuals: Sequence[LoraPair], parameters: Parameters) -> Prepared:
    """Every expert 1/E, whatever the token."""
    del parameters
    return Prepared(Fixed(torch.full((len(residuals),), 1.0 / len(residuals))))
