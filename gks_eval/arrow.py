"""Arrow routing: prototypes of experts and per-token mixing coefficients.

Ostapenko et al. 2024, "Towards Modular LLMs by Building and Reusing a Library of LoRAs"
(arXiv:2405.11157). The prototype of an expert at one layer is the input direction that its update
amplifies most; a token goes to the experts whose prototypes it is most aligned with, whatever the
sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.lora import LoraPair

__all__ = ["arrow_coefficients", "prototype", "prototypes"]

# Below this share of sum_r |B_r| |A_r| an update is the rounding of its float32 factors (1.2e-7 an
# entry) and not a direction: the terms have cancelled.
_ZERO_UPDATE = 1e-6


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


def arrow_coefficients(
    scores_TE: torch.Tensor,
    top_k: int,
    temperature: float = 1.0,
    dead: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mixing coefficients of each token, (T, E), float32, each row summing to 1.

    The `top_k` experts of largest ``|score|`` share a softmax over ``|score| / temperature``; the
    others get zero.

    Args:
        scores_TE: ``x . p_e``, (T, E), of either sign.
        top_k: Number of experts mixed; values above E mean E.
        temperature: Positive.
        dead: (E,) bool, experts with a zero prototype: chosen only after all others.
    """
    magnitude_TE = scores_TE.float().abs()
    experts = magnitude_TE.shape[-1]
    if top_k >= experts:
        return _shares(magnitude_TE, temperature)
    rank_by_TE = magnitude_TE if dead is None else magnitude_TE.masked_fill(dead, -1.0)
    chosen_Tk = rank_by_TE.topk(top_k, dim=-1).indices
    share_Tk = _shares(magnitude_TE.gather(-1, chosen_Tk), temperature)
    return torch.zeros_like(magnitude_TE).scatter_(-1, chosen_Tk, share_Tk)


def _shares(magnitude_TE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(magnitude / temperature) over the last dimension, however small it is."""
    if temperature == 1.0:
        return torch.softmax(magnitude_TE, dim=-1)
    # Less the largest first, which changes nothing but cannot overflow; in float32 a temperature
    # below its smallest normal number would be zero.
    below_TE = magnitude_TE - magnitude_TE.amax(dim=-1, keepdim=True)
    return torch.softmax(below_TE / max(temperature, torch.finfo(torch.float32).tiny), dim=-1)
