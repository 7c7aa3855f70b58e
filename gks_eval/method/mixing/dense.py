"""All experts are read and written, in two matrix products."""

from __future__ import annotations

import torch

from gks_eval.method.weights import RoutedWeights

__all__ = ["mixed_densely"]


def mixed_densely(c_TE: torch.Tensor, z_TM: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return what is multiplied with ``weights.write``, (T, M).

    Args:
        c_TE: Coefficients, (T, E) or (1, E).
        z_TM: Inner activations; without gradients they are overwritten.
        weights: The layer's.
    """
    stacked, rows = weights.stacked, weights.rows
    experts_TM, once_TM = z_TM[:, :stacked], z_TM[:, stacked:]
    c_TE1 = c_TE.unsqueeze(-1)
    if weights.rank or rows.owner is None:
        z_TER = experts_TM.view(len(z_TM), weights.experts, rows.ranks)
        if weights.rank:
            z_TER = (c_TE1 * z_TER).sum(1, keepdim=True)
        mixed_TM = (c_TE1 * z_TER).flatten(1)
    else:
        mixed_TM = c_TE[:, rows.owner] * experts_TM
    if weights.present is not None:
        once_TM = (c_TE @ weights.present).unsqueeze(1) * once_TM
    # Coefficients are float32: the products are rounded to the layer's type once, here.
    if torch.is_grad_enabled():
        # The backward pass still needs what writing in place would overwrite.
        dtype = weights.write.dtype
        return torch.cat([mixed_TM.to(dtype), once_TM.to(dtype)], dim=1)
    z_TM[:, :stacked] = mixed_TM
    if weights.present is not None:
        z_TM[:, stacked:] = once_TM
    return z_TM.to(weights.write.dtype)
