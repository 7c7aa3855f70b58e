"""Coefficients from scores: a softmax over each token's largest scores."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from typing_extensions import Self

from gks_eval.errors import UsageError
from gks_eval.method.declaration import Parameters

__all__ = ["TopK", "top_k_softmax"]


class TopK(Parameters):
    """Parameters of routers that mix each token's best experts."""

    top_k: int = Field(default=3, ge=1, description="Experts mixed per token, at most all.")
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Divides the scores before the softmax."
    )

    def fitted(self, experts: int) -> Self:
        """Return these values with a top_k of at most `experts`.

        Raises:
            UsageError: A larger top_k was given.
        """
        if self.top_k <= experts:
            return self
        if "top_k" in self.model_fields_set:
            raise UsageError(
                f"top_k={self.top_k} is above the {experts} experts; use at most that many."
            )
        return self.model_copy(update={"top_k": experts})


def top_k_softmax(
    scores_TE: torch.Tensor,
    top_k: int,
    temperature: float = 1.0,
    dead: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return coefficients, (T, E), float32, each row summing to 1.

    The `top_k` experts of largest score share a softmax over ``score / temperature``; the others
    get zero.

    Args:
        scores_TE: (T, E).
        top_k: Number of experts mixed; values above E mean E.
        temperature: Positive.
        dead: (E,) bool, experts that are chosen only after all others.
    """
    scores_TE = scores_TE.float()
    if top_k >= scores_TE.shape[-1]:
        return _shares(scores_TE, temperature)
    rank_by_TE = scores_TE if dead is None else scores_TE.masked_fill(dead, -math.inf)
    chosen_Tk = rank_by_TE.topk(top_k, dim=-1).indices
    share_Tk = _shares(scores_TE.gather(-1, chosen_Tk), temperature)
    return torch.zeros_like(scores_TE).scatter_(-1, chosen_Tk, share_Tk)


def _shares(scores_TE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(scores / temperature) over the last dimension, for any temperature."""
    if temperature == 1.0:
        return torch.softmax(scores_TE, dim=-1)
    # Subtracting the largest score avoids overflow and changes nothing. In float32 a temperature
    # below the smallest normal number would be zero.
    below_TE = scores_TE - scores_TE.amax(dim=-1, keepdim=True)
    return torch.softmax(below_TE / max(temperature, torch.finfo(torch.float32).tiny), dim=-1)
