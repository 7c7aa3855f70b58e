"""Core space: any merge, on the small cores of the updates."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.inner import Inner, inner_merge
from gks_eval.method.merges.span import common_span
from gks_eval.method.merges.tsv import orthogonalised

__all__ = ["core_space"]


class InCore(Inner):
    """Parameters of a merge in core space."""

    inner: Literal["ties", "dare_linear", "dare_ties", "magnitude_prune", "tsv", "mean"] = Field(
        default="ties", description="How the cores are merged."
    )


@merge(paper="Panariello et al. 2025, https://arxiv.org/abs/2509.17786", parameters=InCore)
def core_space(layer: Layer, parameters: InCore) -> LoraPair:
    """``dW = U merge(C_e) V``, with the cores of ``dW_e = U C_e V``.

    U, (D, P), and V, (Q, K), are bases of all B's columns and all A's rows: the singular vectors of
    ``[B_1 | ...]`` and ``[A_1; ...]``. The cores, (P, Q), hold the updates without loss. P and Q
    are at most the sum of the ranks, and so is the rank of the result. Ranks and scalings may
    differ. ``inner=mean`` is the weighted sum of the updates. ``inner=tsv`` is `merge:tsv` with at
    most ``min(sum of ranks, D, K) / E`` singular triplets per update.
    """
    span = common_span(layer.residuals)
    if parameters.inner == "tsv":
        columns = torch.eye(span.left.shape[1], dtype=span.left.dtype)
        cores = [LoraPair(core, columns) for core in span.cores]
        width = min(sum(pair.rank for pair in layer.residuals), *layer.residuals[0].shape)
        most = max(1, width // len(cores))
        weight = 1.0 if parameters.weight is None else parameters.weight
        return span.pair(orthogonalised(cores, most, weight).delta())
    return span.pair(inner_merge(parameters.inner, span.cores, parameters, layer.name))
