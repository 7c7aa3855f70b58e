"""Norms of tokens before they are scored, without a normalised copy of every token.

A product with a normalised token is a product with the token, divided by one number per token. For
a layer norm, the direction is centred first: its entries then sum to zero, so that the mean of the
token has no effect.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

__all__ = ["LAYER_EPS", "SMALLEST", "InputNorm", "centred", "token_sizes"]

InputNorm = Literal["id", "layer", "unit"]

LAYER_EPS: Final = 1e-5
"""The eps of torch.nn.LayerNorm."""
SMALLEST: Final = 1e-8
"""The smallest norm that MTTL divides by."""


def centred(directions_NK: torch.Tensor) -> torch.Tensor:
    """Return directions, (N, K) float32, whose entries sum to zero."""
    wide = directions_NK.double()
    means: torch.Tensor = wide.mean(dim=1, keepdim=True)
    return torch.sub(wide, means).float()


def token_sizes(x_TK: torch.Tensor, norm: InputNorm) -> torch.Tensor:
    """Return what each token's products are divided by, (T, 1) float32.

    For ``layer``, the standard deviation of a layer norm; for ``unit``, the norm; for ``id``, 1.
    """
    if x_TK.device.type == "cuda" and norm != "id" and not torch.is_grad_enabled():
        return _in_one_launch(x_TK, norm)
    x_TK = x_TK.float()
    if norm == "id":
        return x_TK.new_ones(x_TK.shape[0], 1)
    if norm == "unit":
        norms: torch.Tensor = x_TK.norm(dim=1, keepdim=True).clamp_min(SMALLEST)
        return norms
    centred_TK = x_TK - x_TK.mean(dim=1, keepdim=True)
    return torch.sqrt(centred_TK.square().mean(dim=1, keepdim=True) + LAYER_EPS)


def _in_one_launch(x_TK: torch.Tensor, norm: InputNorm) -> torch.Tensor:
    if norm == "unit":
        wide = torch.float32
        norms: torch.Tensor = torch.linalg.vector_norm(x_TK, dim=1, keepdim=True, dtype=wide)
        return norms.clamp_min(SMALLEST)
    # Its third result is one over the standard deviation, in float32 also for 16-bit tokens.
    return torch.native_layer_norm(x_TK, x_TK.shape[1:], None, None, LAYER_EPS)[2].reciprocal()
