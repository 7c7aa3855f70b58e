"""Mixing of all experts, between the two dense products."""

from __future__ import annotations

import torch

from gks_eval.method.weights import RoutedWeights

__all__ = ["mixed_densely"]


def mixed_densely(c_TE: torch.Tensor, z_TM: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return what is multiplied with ``weights.write``, (T, M).

    Args:
        c_TE: Coefficients, (T, E) or (1, E), float32. The products are rounded to the layer's type
            once, here.
        z_TM: Inner activations; without gradients they are overwritten.
        weights: The layer's.
    """
    stacked, rank = weights.stacked, weights.rows.ranks
    experts_TM = z_TM if stacked == z_TM.shape[1] else z_TM[:, :stacked]
    if torch.is_grad_enabled():
        # The backward pass still needs what writing in place would overwrite.
        dtype = weights.write.dtype
        mixed_TM = _mixed(c_TE, experts_TM, weights).to(dtype)
        once_TM = _counted(c_TE, z_TM[:, stacked:], weights).to(dtype)
        return torch.cat([mixed_TM, once_TM], dim=1)
    if rank and not weights.rank:
        experts_TM.view(-1, weights.experts, rank).mul_(c_TE.unsqueeze(-1))
    else:
        experts_TM.copy_(_mixed(c_TE, experts_TM, weights))
    if weights.present is not None:
        z_TM[:, stacked:] = _counted(c_TE, z_TM[:, stacked:], weights)
    return z_TM if z_TM.dtype == weights.write.dtype else z_TM.to(weights.write.dtype)


def _mixed(c_TE: torch.Tensor, z_TM: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    owner = weights.rows.owner
    if owner is not None:
        return c_TE[:, owner] * z_TM
    c_TE1 = c_TE.unsqueeze(-1)
    z_TER = z_TM.view(z_TM.shape[0], weights.experts, weights.rows.ranks)
    if weights.rank:
        z_TER = (c_TE1 * z_TER).sum(1, keepdim=True)
    return (c_TE1 * z_TER).flatten(1)


def _counted(c_TE: torch.Tensor, once_TM: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return the general part's activations times the share that it is subtracted from."""
    if weights.present is None:
        return once_TM
    return (c_TE @ weights.present).unsqueeze(1) * once_TM
