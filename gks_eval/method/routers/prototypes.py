"""Prototypes of experts: the input direction that an update amplifies most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from gks_eval.method.lora import LoraPair

__all__ = ["prototype", "prototypes"]

# Below this share of sum_r |B_r| |A_r| an update is the rounding of its float32 factors (1.2e-7 per
# entry) and not a direction: the terms have cancelled.
_ZERO_UPDATE: Final = 1e-6


def prototype(pair: LoraPair) -> torch.Tensor:
    """Return the top right singular vector of the pair's update, (K,), float32.

    ``dW = B A`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A`` is ``Q_B (R_B R_A^T) Q_A^T``, so an SVD
    of the core, at most R x R, suffices; it runs in float64. The sign is arbitrary and set so that
    the entry of largest magnitude is positive. An update of zero has the prototype zero.
    """
    A, B = pair.A.double(), pair.B.double()
    basis_A, core_A = torch.linalg.qr(A.T)
    core_B = torch.linalg.qr(B, mode="r").R
    _, singular, right = torch.linalg.svd(core_B @ core_A.T)
    vector = basis_A @ right[0]
    # Summed over the rank: rows of very different size are common in stacked pairs.
    if singular[0] <= _ZERO_UPDATE * (A.norm(dim=1) @ B.norm(dim=0)):
        return torch.zeros_like(vector, dtype=torch.float32)
    signed: torch.Tensor = vector * torch.sign(vector[vector.abs().argmax()])
    return signed.float()


def prototypes(pairs: Sequence[LoraPair]) -> torch.Tensor:
    """Return the prototypes of several experts at one layer, (E, K), float32."""
    return torch.stack([prototype(pair) for pair in pairs])
