"""Coefficients from scores: a softmax over each token's largest scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from pydantic import Field, field_validator
from typing_extensions import Self

from gks_eval.errors import UsageError
from gks_eval.method.choice import Choice
from gks_eval.method.declaration import Parameters, Tokens

__all__ = [
    "ALL",
    "LayerTopK",
    "LevelledTopK",
    "TopK",
    "top_k_choice",
    "top_k_field",
    "top_k_softmax",
]

ALL: Final = -1
"""The `top_k` that stands for all experts."""
TINY: Final = 2.0**-126
"""The smallest normal float32; the root has no finite gradient at zero."""
Scale = Literal["same", "magnitude", "root"]
"""How scores follow from raw scores: equal, their magnitudes, or ``sqrt(max(raw, TINY))``."""


def top_k_field(default: int) -> Any:
    """Return the field `top_k` with a default."""
    return Field(
        default=default,
        ge=ALL,
        description="Experts mixed per token, at most all; -1 for all.",
        json_schema_extra={"expected": "a whole number of at least 1, or -1 for all experts"},
    )


class TopK(Parameters):
    """Parameters of routers that mix each token's best experts."""

    top_k: int = top_k_field(3)
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Divides the scores before the softmax."
    )

    @field_validator("top_k")
    @classmethod
    def _some(cls, top_k: int) -> int:
        if top_k == 0:
            raise ValueError("at least one expert is mixed")
        return top_k

    def fitted(self, experts: int) -> Self:
        """Return these values with a top_k of 1 to `experts`.

        Raises:
            UsageError: A larger top_k was given.
        """
        if 0 < self.top_k <= experts:
            return self
        if self.top_k != ALL and "top_k" in self.model_fields_set:
            raise UsageError(
                f"top_k={self.top_k} is above the {experts} experts; use at most that many."
            )
        return self.model_copy(update={"top_k": experts})


class LevelledTopK(TopK):
    """Parameters of routers that choose per token or per sequence.

    What such a router prepares is a `gks_eval.method.declaration.ContextRouter`.
    """

    level: Literal["token", "sequence"] = Field(
        default="token",
        description="One choice per token, or per sequence from its context's mean scores.",
        json_schema_extra={"since": "0.2.0"},
    )

    @property
    def by_context(self) -> bool:
        """Whether there is one choice per context."""
        return self.level == "sequence"


@dataclass(frozen=True)
class LayerTopK(ABC):
    """A router that takes a softmax over score / temperature of the `top_k` largest scores.

    Attributes:
        top_k: Experts mixed per token; -1 and values above E mean E.
        temperature: Positive.
        dead: (E,) bool, experts that are chosen only after all others; None if there are none.
    """

    top_k: int
    temperature: float
    dead: torch.Tensor | None

    @property
    def reads_inner(self) -> bool:
        """Whether scores need inner activations, see `gks_eval.method.choice.SparseRouter`."""
        return False

    @property
    def of_raw(self) -> Scale:
        """How `scores` follow from `raw`."""
        return "same"

    @property
    def scales_products(self) -> bool:
        """Whether `raw` is `Tokens.scores` times one number per token, also for parts."""
        return False

    def raw(self, tokens: Tokens) -> torch.Tensor:
        """Return what `scores` are an elementwise function of, (T, E)."""
        return self.scores(tokens)

    @abstractmethod
    def scores(self, tokens: Tokens) -> torch.Tensor:
        """Return the score of every expert, (T, E)."""

    def choice(self, tokens: Tokens) -> Choice:
        """Return each token's experts."""
        return top_k_choice(self.scores(tokens), self.top_k, self.temperature, self.dead)

    def chosen(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return (T, E), or (T, L, E) for scores of that shape."""
        return top_k_softmax(scores_TE, self.top_k, self.temperature, self.dead)

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        return self.chosen(self.scores(tokens))


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
        top_k: Number of experts mixed; -1 and values above E mean E.
        temperature: Positive.
        dead: (E,) or (T, E) bool, experts that are chosen only after all others.
    """
    experts = scores_TE.shape[-1]
    if top_k == ALL or top_k >= experts:
        return _shares(scores_TE.float(), temperature)
    # Not by way of `Choice`, whose creation takes as long as an operator.
    experts_Tk, share_Tk = _top_k(scores_TE.float(), top_k, temperature, dead)
    return scores_TE.new_zeros(scores_TE.shape, dtype=torch.float32).scatter_(
        -1, experts_Tk, share_Tk
    )


def top_k_choice(
    scores_TE: torch.Tensor, top_k: int, temperature: float, dead: torch.Tensor | None
) -> Choice:
    """Return the same, for a `top_k` of 1 to E."""
    return Choice(*_top_k(scores_TE.float(), top_k, temperature, dead))


def _top_k(
    scores_TE: torch.Tensor, top_k: int, temperature: float, dead: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's experts and their coefficients, (T, k)."""
    # Nothing needs the chosen experts in order.
    if dead is None:
        score_Tk, chosen_Tk = scores_TE.topk(top_k, dim=-1, sorted=False)
    else:
        alive_TE = scores_TE.masked_fill(dead, -math.inf)
        chosen_Tk = alive_TE.topk(top_k, dim=-1, sorted=False).indices
        score_Tk = scores_TE.gather(-1, chosen_Tk)
    return chosen_Tk, _shares(score_Tk, temperature)


def _shares(scores_TE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(scores / temperature) over the last dimension, for any temperature."""
    if temperature == 1.0:
        return torch.softmax(scores_TE, dim=-1)
    # Subtracting the largest score avoids overflow and changes nothing. In float32 a temperature
    # below the smallest normal number would be zero.
    below_TE = scores_TE - scores_TE.amax(dim=-1, keepdim=True)
    return torch.softmax(below_TE / max(temperature, torch.finfo(torch.float32).tiny), dim=-1)
