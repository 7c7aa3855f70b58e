"""Scores of standardised inputs with one standardised vector per expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gks_eval.errors import CompatibilityError
from gks_eval.method.declaration import Layer, Prepared, Tokens
from gks_eval.method.routers.input_norm import LAYER_EPS, token_sizes
from gks_eval.method.routers.top_k import LayerTopK, TopK

__all__ = ["LayerStandardised"]


@dataclass(frozen=True)
class LayerStandardised(LayerTopK):
    """Top-k softmax over ``LN(x) . LN(v_e) / sqrt(K)``.

    LN is a layer norm without weight and bias. LN(v) sums to zero, so the mean of x has no effect:
    the score is ``x . LN(v)`` over the standard deviation of x.
    Experts whose vector is zero are dead.
    """

    @classmethod
    def at(cls, layer: Layer, parameters: TopK) -> Prepared:
        """Prepare a layer with the vectors that were made for its experts.

        Raises:
            CompatibilityError: The layer has no prepared vectors.
        """
        vectors = layer.prepared
        if vectors is None:
            raise CompatibilityError(
                f"{layer.name or 'the layer'}: this router needs prepared vectors; make them with "
                "`gks-eval prepare`."
            )
        # In float64, so that the sum of a row is zero to float32's rounding.
        wide = vectors.double()
        directions = torch.nn.functional.layer_norm(wide, wide.shape[1:], eps=LAYER_EPS)
        dead = ~vectors.any(dim=1)
        used = dead if bool(dead.any()) else None
        return Prepared(cls(parameters.top_k, parameters.temperature, used), directions.float())

    @property
    def scales_products(self) -> bool:
        """Tokens are at most normalised."""
        return True

    def scores(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        width = tokens.x.shape[1]
        sizes_T1 = token_sizes(tokens.x, "layer") * width**0.5
        return torch.div(tokens.scores, sizes_T1)
