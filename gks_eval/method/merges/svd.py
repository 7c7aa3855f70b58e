"""The mean of the updates, truncated to a rank."""

from __future__ import annotations

import torch
from pydantic import Field

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.span import common_span
from gks_eval.method.merges.weight import Weighted

__all__ = ["svd"]


class Truncated(Weighted):
    """Parameters of a merge of limited rank."""

    rank: int | None = Field(
        default=None, ge=1, description="Rank of the result; by default the experts' largest."
    )


@merge(paper="Eckart and Young 1936, https://doi.org/10.1007/BF02288367", parameters=Truncated)
def svd(layer: Layer, parameters: Truncated) -> LoraPair:
    """The best approximation of ``lambda sum(dW_e)`` of a given rank.

    Best in the Frobenius norm, by the SVD of the summed cores, see `gks_eval.method.merges.span`;
    ranks and scalings may differ. PEFT's ``svd`` gives the same from the full matrix.
    """
    span = common_span(layer.residuals)
    core = parameters.of(layer.residuals) * torch.stack(span.cores).sum(0)
    rank = parameters.rank or max(pair.rank for pair in layer.residuals)
    return span.pair(core, rank)
