"""Arrow: tokens go to the experts whose prototypes they are most aligned with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gks_eval.method.declaration import Layer, Prepared, Tokens
from gks_eval.method.decorators import router
from gks_eval.method.routers.prototypes import prototypes
from gks_eval.method.routers.top_k import TopK, top_k_softmax

__all__ = ["LayerArrow", "arrow"]


@dataclass(frozen=True)
class LayerArrow:
    """Top-k softmax over ``|x . prototype|``; `dead` is (E,) bool, zero prototypes."""

    top_k: int
    temperature: float
    dead: torch.Tensor | None

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        return top_k_softmax(tokens.scores.abs(), self.top_k, self.temperature, self.dead)


@router(paper="Ostapenko et al. 2024, https://arxiv.org/abs/2405.11157", parameters=TopK)
def arrow(layer: Layer, parameters: TopK) -> Prepared:
    """Softmax over the largest ``|x . p_e|``; p_e is the top right singular vector of dW_e.

    p_e, (K,), is the prototype of expert e; dW_e is the update of its residual. An expert whose
    residual is zero has the prototype zero and is chosen only after all others.
    """
    directions = prototypes(layer.residuals)
    dead = ~directions.any(dim=1)
    used = dead if bool(dead.any()) else None
    return Prepared(LayerArrow(parameters.top_k, parameters.temperature, used), directions)
