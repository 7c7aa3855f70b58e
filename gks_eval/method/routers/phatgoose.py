"""PHATGOOSE: tokens go to the experts whose trained gates they are most aligned with."""

from __future__ import annotations

from gks_eval.method.declaration import VECTORS, Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.standardised import LayerStandardised
from gks_eval.method.routers.top_k import TopK, top_k_field

__all__ = ["phatgoose"]


class TopTwo(TopK):
    """Parameters of a router that mixes two experts by default."""

    top_k: int = top_k_field(2)


@router(
    paper="Muqeeth et al. 2024, https://arxiv.org/abs/2402.05859",
    parameters=TopTwo,
    needs=VECTORS,
)
def phatgoose(layer: Layer, parameters: TopTwo) -> Prepared:
    """Softmax over the largest ``LN(x) . LN(v_e) / sqrt(K)``; v_e is a trained gate.

    v_e, (K,), was trained per expert and layer with base and expert frozen, as
    ``y = W x + sigmoid(v_e . x) dW_e x``, starting at zero, see `gks_eval.training.gates`. LN is a
    layer norm without weight and bias. The paper mixes outputs: use ``combine=outputs``.
    """
    return LayerStandardised.at(layer, parameters)
