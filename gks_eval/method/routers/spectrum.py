"""The singular values and input directions of an update, from its factors."""

from __future__ import annotations

from typing import Final

import torch

from gks_eval.method.lora import LoraPair

__all__ = ["spectral_pair", "spectrum"]

# Below this share of sum_r |B_r| |A_r| a singular value is a rounding error of float32 factors
# (1.2e-7 per entry), and its vector is arbitrary.
_ROUNDING: Final = 1e-6


def spectrum(pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
    """Return S, (Q,), and V^T, (Q, K), of ``dW = U S V^T``, in float64; Q is at most R.

    ``B A`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A`` is ``Q_B (R_B R_A^T) Q_A^T``, so an SVD of
    the core, at most R x R, suffices. The signs are arbitrary and set so that the entry of largest
    magnitude in each row of V^T is positive. Values that are rounding errors are set to
    zero, and so are their rows.
    """
    A, B = pair.A.double(), pair.B.double()
    basis_A, core_A = torch.linalg.qr(A.T)
    core_B = torch.linalg.qr(B, mode="r").R
    _, values, right = torch.linalg.svd(core_B @ core_A.T, full_matrices=False)
    rows = (basis_A @ right.T).T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    # Summed over the rank: rows of very different size are common in stacked pairs.
    real = values > _ROUNDING * (A.norm(dim=1) @ B.norm(dim=0))
    return abs(pair.scaling) * values * real, rows * torch.sign(largest) * real[:, None]


def spectral_pair(pair: LoraPair) -> LoraPair:
    """Return the same update with ``A = V^T`` and ``B = U S``, scaling 1.

    ``U S = dW V``, so that the signs of U follow from those of V.
    """
    _, right = spectrum(pair)
    left = pair.scaling * (pair.B.double() @ (pair.A.double() @ right.T))
    return LoraPair(right.to(pair.A.dtype), left.to(pair.B.dtype))
