"""Mean activation: tokens go to the experts whose mean training input they resemble most."""

from __future__ import annotations

from gks_eval.method.declaration import VECTORS, Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.standardised import LayerStandardised
from gks_eval.method.routers.top_k import TopK

__all__ = ["mean_activation"]


@router(
    paper="a baseline of Ostapenko et al. 2024, https://arxiv.org/abs/2405.11157",
    parameters=TopK,
    needs=VECTORS,
)
def mean_activation(layer: Layer, parameters: TopK) -> Prepared:
    """Softmax over the largest ``LN(x) . LN(v_e) / sqrt(K)``; v_e is a mean of inputs.

    v_e, (K,), is the mean of the layer's inputs over a few samples of the expert's data, with the
    expert attached, see `gks_eval.training.activations`. LN is a layer norm without weight and
    bias.
    """
    return LayerStandardised.at(layer, parameters)
