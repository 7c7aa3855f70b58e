"""Norm: tokens go to the experts whose own update of them is largest."""

from __future__ import annotations

from gks_eval.method.declaration import Layer, Prepared, router
from gks_eval.method.routers.norms import LayerNorms
from gks_eval.method.routers.spectrum import spectral_pair
from gks_eval.method.routers.top_k import TopK

__all__ = ["norm"]


@router(
    paper="Fleshman and Van Durme 2025, https://arxiv.org/abs/2509.18093",
    parameters=TopK,
    basis=spectral_pair,
)
def norm(layer: Layer, parameters: TopK) -> Prepared:
    """Softmax over the largest ``|dW_e x|``, the norm of the expert's own update.

    ``|dW_e x| = |S_e V_e^T x|`` with the SVD ``dW_e = U_e S_e V_e^T``, so no update is computed.
    What is mixed is ``A = V^T``, ``B = U S``, as by `spectr`. With ``top_k=1`` the choice is the
    paper's, the expert of largest activation norm. An expert whose residual is zero is chosen only
    after all others.
    """
    return Prepared(LayerNorms.at(layer, weighted=True, **parameters.model_dump()))
