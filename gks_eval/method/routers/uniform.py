"""Uniform: the same coefficient for every expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
from gks_eval.method.decorators import router

__all__ = ["Fixed", "uniform"]


@dataclass(frozen=True)
class Fixed:
    """The same coefficients, (E,) float32, for every token."""

    shares: torch.Tensor

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (1, E)."""
        del tokens
        return self.shares.unsqueeze(0)


@router(paper="a baseline of Ostapenko et al. 2024, https://arxiv.org/abs/2405.11157")
def uniform(layer: Layer, parameters: Parameters) -> Prepared:
    """Coefficient 1/E for every expert and token."""
    del parameters
    experts = len(layer.residuals)
    return Prepared(Fixed(torch.full((experts,), 1.0 / experts)))
