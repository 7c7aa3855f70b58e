"""KnOTS: merging in a basis that all updates share."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.inner import Inner, inner_merge
from gks_eval.method.merges.span import common_span
from gks_eval.method.rules.rounding import ROUNDING

__all__ = ["knots"]


class Aligned(Inner):
    """Parameters of KnOTS."""

    inner: Literal["ties", "dare_linear", "dare_ties", "magnitude_prune", "mean"] = Field(
        default="ties", description="How the aligned parts are merged."
    )
    on: Literal["V", "SV"] = Field(
        default="V", description="What is merged: V as in the paper, or S V as in its code."
    )


@merge(paper="Stoica et al. 2025, https://arxiv.org/abs/2410.19735", parameters=Aligned)
def knots(layer: Layer, parameters: Aligned) -> LoraPair:
    """``dW = U S merge(V_e)``, from the SVD ``U S [V_1 | ... | V_E]`` of ``[dW_1 | ... | dW_E]``.

    V_e, (P, K), holds the part of expert e in the common basis U, (D, P); P is at most the sum of
    the ranks, and the rank of the result. Directions whose singular values are rounding errors are
    left out. The SVD is that of the cores side by side, see `gks_eval.method.merges.span`; the
    largest tensors are the V_e, E x P x K numbers. Ranks and scalings may differ. With
    ``inner=mean`` this is the weighted sum of the updates.
    """
    span = common_span(layer.residuals)
    u, singular, v = torch.linalg.svd(torch.cat(span.cores, dim=1), full_matrices=False)
    noise = ROUNDING * torch.finfo(span.dtype).eps
    kept = max(1, int((singular > noise * singular[0]).sum()))
    parts = [part @ span.right for part in v[:kept].chunk(len(span.cores), dim=1)]
    weights = singular[:kept]
    if parameters.on == "SV":
        parts, weights = [weights.unsqueeze(1) * part for part in parts], torch.ones_like(weights)
    merged = inner_merge(parameters.inner, parts, parameters, layer.name)
    return LoraPair(merged.to(span.dtype), (span.left @ u[:, :kept] * weights).to(span.dtype))
