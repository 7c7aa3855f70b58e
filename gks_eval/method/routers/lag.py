"""LAG: Arrow keeps a shortlist of experts, SpectR chooses among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import Field
from typing_extensions import Self

from gks_eval.errors import UsageError
from gks_eval.method.choice import Choice
from gks_eval.method.declaration import Layer, Prepared, Tokens
from gks_eval.method.decorators import router
from gks_eval.method.routers.norms import LayerNorms, Rows
from gks_eval.method.routers.prototypes import prototypes
from gks_eval.method.routers.spectrum import spectral_pairs
from gks_eval.method.routers.top_k import ALL, TopK, top_k_choice, top_k_field, top_k_softmax

__all__ = ["lag"]


class Shortlisted(TopK):
    """Parameters of a router in two stages."""

    top_k: int = top_k_field(1)
    shortlist: int = Field(
        default=20, ge=1, description="Experts that Arrow keeps per token, at most all."
    )

    def fitted(self, experts: int) -> Self:
        """Return these values with a shortlist and a top_k of at most `experts`.

        Raises:
            UsageError: A top_k above the number of experts or above the shortlist was given.
        """
        if self.top_k > self.shortlist:
            raise UsageError(
                f"top_k={self.top_k} is above shortlist={self.shortlist}; use at most that many."
            )
        kept = {"shortlist": min(self.shortlist, experts)}
        if self.top_k == ALL:
            kept["top_k"] = kept["shortlist"]
        return super().fitted(experts).model_copy(update=kept)


@dataclass(frozen=True)
class LayerLag(LayerNorms):
    """Top-k softmax over ``|V_e^T x|`` among the experts of largest ``|v_e . x|``.

    Attributes:
        shortlist: Experts kept by ``|v_e . x|``.
        shared: How many of the first scores are products with prototypes of tied layers; 0 if the
            layer has its own.
    """

    shortlist: int
    shared: int = 0

    def choice(self, tokens: Tokens) -> Choice:
        """Return each token's experts."""
        norms_TE, last = self._norms_and_last(tokens)
        return top_k_choice(norms_TE, self.top_k, self.temperature, last)

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        norms_TE, last = self._norms_and_last(tokens)
        return top_k_softmax(norms_TE, self.top_k, self.temperature, last)

    def _norms_and_last(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor | None]:
        shared_TE = tokens.scores[:, : self.shared]
        products_TN = self.products(replace(tokens, scores=tokens.scores[:, self.shared :]))
        norms_TE = self.norms(products_TN)
        last = self.dead
        if self.shortlist < norms_TE.shape[1]:
            arrow_TE = (shared_TE if self.shared else products_TN[:, self.first]).abs()
            if last is not None:
                arrow_TE = arrow_TE.masked_fill(last, -1.0)
            kept = arrow_TE.topk(self.shortlist, dim=-1).indices
            left_out = torch.ones_like(norms_TE, dtype=torch.bool).scatter_(-1, kept, False)
            last = left_out if last is None else left_out | last
        return norms_TE, last


@router(
    paper="Fleshman and Van Durme 2025, https://arxiv.org/abs/2507.05346",
    parameters=Shortlisted,
    basis=spectral_pairs,
)
def lag(layer: Layer, parameters: Shortlisted) -> Prepared:
    """Arrow's ``shortlist`` best experts, and of these the ones of largest ``|V_e^T x|``.

    ``dW_e = U_e S_e V_e^T`` is the SVD of the residual's update; Arrow's score is the first row of
    ``V_e^T x``. Factors, singular values and zero residuals are treated as by `spectr`. The paper
    has pools of task and of knowledge adapters and chooses one of each; here there is one pool.
    The shortlist of tied layers is that of their common prototypes.
    """
    spans = Rows.spanned(layer.residuals)
    if layer.tied is None:
        return LayerLag.at(layer, spans, spans, **parameters.model_dump())
    common = prototypes(layer.tied.residuals)
    ready = LayerLag.at(layer, spans, spans, **parameters.model_dump(), shared=len(common))
    own = [] if ready.directions is None else [ready.directions]
    return replace(ready, directions=torch.cat([common, *own]))
