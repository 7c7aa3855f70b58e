"""Truncates updates to a rank, and measures the error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.span import singular_triplets

__all__ = ["Truncation", "truncated"]


@dataclass(frozen=True)
class Truncation:
    """The error of truncating several adapters.

    Attributes:
        rank: The rank R.
        lost: ``sum ||dW - dW_R||_F^2`` over the adapters, by layer.
        whole: ``sum ||dW||_F^2`` over the adapters, by layer.
    """

    rank: int
    lost: dict[str, float] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)

    def add(self, layer: str, lost: float, whole: float) -> None:
        """Count one adapter's squared norms at one layer."""
        self.lost[layer] = self.lost.get(layer, 0.0) + lost
        self.whole[layer] = self.whole.get(layer, 0.0) + whole

    @property
    def layers(self) -> dict[str, float]:
        """The relative error per layer, ``||dW - dW_R||_F / ||dW||_F`` over all adapters."""
        return {name: _relative(lost, self.whole[name]) for name, lost in self.lost.items()}

    @property
    def total(self) -> float:
        """The relative error over all layers and adapters."""
        return _relative(sum(self.lost.values()), sum(self.whole.values()))


def truncated(pair: LoraPair, truncation: Truncation, layer: str) -> LoraPair:
    """Return the best approximation of rank ``truncation.rank`` to an update; count its error.

    By the SVD ``dW = U S V`` (Eckart and Young 1936), with ``B = U sqrt(S)``, ``A = sqrt(S) V`` and
    scaling 1. A pair of that rank or less is not changed. Where dW itself has a lower rank, rows of
    zeros keep all layers at one rank, which PEFT's Arrow needs.
    """
    U_DM, S_M, V_MK = singular_triplets(pair)
    squares, rank = S_M.square(), truncation.rank
    kept = pair.rank if pair.rank <= rank else rank
    truncation.add(layer, float(squares[kept:].sum()), float(squares.sum()))
    if kept == pair.rank:
        return pair
    root = S_M[:rank].sqrt()
    A = torch.zeros(rank, pair.shape[1], dtype=pair.A.dtype)
    B = torch.zeros(pair.shape[0], rank, dtype=pair.B.dtype)
    A[: len(root)] = root[:, None] * V_MK[:rank]
    B[:, : len(root)] = U_DM[:, :rank] * root
    return LoraPair(A, B)


def _relative(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole > 0 else 0.0
