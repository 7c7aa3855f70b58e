"""Norm: tokens go to the experts whose update changes them most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.method.declaration import Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.lora import LoraPair
from gks_eval.method.routers.norms import LayerNorms, Rows
from gks_eval.method.routers.spectrum import spectral_pairs, spectrum
from gks_eval.method.routers.top_k import LevelledTopK

__all__ = ["norm"]


@router(
    paper="Fleshman and Van Durme 2025, https://arxiv.org/abs/2509.18093",
    parameters=LevelledTopK,
    basis=spectral_pairs,
)
def norm(layer: Layer, parameters: LevelledTopK) -> Prepared:
    """Softmax over the largest ``|dW_e x|``, the norm of the expert's update of the token.

    ``|dW_e x| = |S_e V_e^T x|`` with the SVD ``dW_e = U_e S_e V_e^T``, so no update is computed.
    The factors that are mixed are ``A = V^T``, ``B = U S``, as in `spectr`. With ``top_k=1`` the
    choice is the paper's, the expert of largest activation norm. An expert whose residual is zero
    is chosen only after all others.
    """
    whole = _weighted(layer.residuals)
    own, common = whole, None
    if layer.once is not None and layer.mixed is not None:
        own = [_beyond_general(pair, layer.once) for pair in layer.mixed]
        (common,) = _weighted([layer.once])
    chosen = {"top_k": parameters.top_k, "temperature": parameters.temperature}
    return LayerNorms.at(layer, whole, own, common, **chosen)


def _weighted(pairs: Sequence[LoraPair]) -> list[Rows]:
    """Return the rows of V^T with the weights S^2, which give ``|dW x|^2``."""
    return [Rows(right, values.square()) for values, right in spectrum(pairs)]


def _beyond_general(pair: LoraPair, general: LoraPair) -> Rows:
    """Return rows for ``|dW x|^2 - |G x|^2``, where ``dW = U S V^T - G`` and all share G.

    It is ``|a - b|^2 - |b|^2`` with ``a = S V^T x`` and ``b = U^T G x``: 2 R rows, however many
    adapters G was made of. `pair` has ``A = V^T`` and ``B = U S``.
    """
    B = pair.B.double()
    sizes = B.norm(dim=0)
    left = B / torch.where(sizes > 0, sizes, 1.0)
    seen = general.scaling * (left.T @ general.B.double()) @ general.A.double()
    signs = torch.ones_like(sizes)
    rows = torch.cat([sizes[:, None] * pair.A.double() - seen, seen])
    return Rows(rows, torch.cat([signs, -signs]))
