"""TSV-Merge: the experts' singular vectors, made orthogonal to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.span import singular_triplets
from gks_eval.method.merges.weight import Multiplied
from gks_eval.method.rules.rounding import ROUNDING

__all__ = ["orthogonalised", "tsv"]


@merge(paper="Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081", parameters=Multiplied)
def tsv(layer: Layer, parameters: Multiplied) -> LoraPair:
    """``dW = lambda U S V``, the experts' top singular vectors made orthogonal.

    The ``max(1, floor(min(D, K) / E))`` largest singular triplets of every update are used, or all
    R if there are fewer. U, (D, M), and V, (M, K), hold the singular vectors of all experts and are
    replaced by their polar factors, the nearest matrices with orthonormal columns and rows; S is
    diagonal. Directions that several experts share count once, and triplets of value zero are left
    out, as their vectors are arbitrary. Only the factors are decomposed; ranks and scalings may
    differ.
    """
    most = max(1, min(layer.residuals[0].shape) // len(layer.residuals))
    return orthogonalised(layer.residuals, most, parameters.weight)


def orthogonalised(pairs: Sequence[LoraPair], most: int, weight: float) -> LoraPair:
    """Return `tsv` with at most `most` triplets of each update."""
    triplets = [singular_triplets(pair) for pair in pairs]
    left = torch.cat([u[:, :most] for u, _, _ in triplets], dim=1)
    singular = torch.cat([s[:most] for _, s, _ in triplets])
    right = torch.cat([v[:most] for _, _, v in triplets])
    if not len(singular):
        return LoraPair(torch.zeros_like(pairs[0].A[:1]), torch.zeros_like(pairs[0].B[:, :1]))
    dtype = pairs[0].A.dtype
    noise = ROUNDING * torch.finfo(dtype).eps
    B = _polar(left, noise) * (weight * singular)
    return LoraPair(_polar(right, noise).to(dtype), B.to(dtype))


def _polar(matrix: torch.Tensor, noise: float) -> torch.Tensor:
    """Return the polar factor ``P Q`` of ``P D Q``, without directions below `noise`."""
    p, size, q = torch.linalg.svd(matrix, full_matrices=False)
    kept = size > noise * size[0]
    factor: torch.Tensor = p[:, kept] @ q[kept]
    return factor
