"""The sparse result of a router: the chosen experts of each token and their coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from typing_extensions import Self

from gks_eval.method.declaration import LayerRouter, Tokens

__all__ = ["Choice", "SparseRouter"]


@dataclass(frozen=True)
class Choice:
    """The k experts that each token chose; the coefficients of all others are zero.

    Attributes:
        experts: (T, k) int64, no expert twice.
        shares: (T, k) float32, their coefficients.
    """

    experts: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, c_TE: torch.Tensor, top_k: int) -> Self:
        """Return the choice of coefficients, (T, E), of which at most `top_k` are nonzero."""
        shares, experts = c_TE.topk(top_k, dim=-1)
        return cls(experts, shares)

    def dense(self, experts: int) -> torch.Tensor:
        """Return the coefficients of all experts, (T, E)."""
        c_TE = self.shares.new_zeros(self.shares.shape[0], experts)
        return c_TE.scatter_(-1, self.experts, self.shares)

    def __getitem__(self, rows: torch.Tensor) -> Self:
        """Return the choice of some tokens."""
        return type(self)(self.experts[rows], self.shares[rows])


@runtime_checkable
class SparseRouter(LayerRouter, Protocol):
    """A router that can also return a `Choice`; ``coefficients`` is its dense form.

    Attributes:
        top_k: Experts per token; -1 for all.
        reads_inner: Whether it reads `Tokens.inner`. If not, inner activations are computed after
            the choice, for the chosen experts only.
    """

    @property
    def top_k(self) -> int:
        """See above."""
        ...

    @property
    def reads_inner(self) -> bool:
        """See above."""
        ...

    def choice(self, tokens: Tokens) -> Choice:
        """Return each token's experts; called only with a `top_k` of 1 to E - 1."""
        ...
