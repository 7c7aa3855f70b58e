"""Many updates of one layer at once: pairs of equal rank, stacked.

A library may hold a thousand adapters. With one decomposition per pair, most of the time would be
the overhead of calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gks_eval.method.lora import LoraPair

__all__ = ["Batch", "batches", "inner_products", "squared_norms"]

_ENTRIES: Final = 1 << 22
"""Largest number of entries of a batch's factors, 32 MiB in float64; more is not faster."""


@dataclass(frozen=True)
class Batch:
    """Pairs of one rank and shape, in float64.

    Attributes:
        index: (N,) int64, the places of the pairs in the sequence that they were taken from.
        A: (N, R, K).
        B: (N, D, R).
        scaling: (N,).
    """

    index: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    scaling: torch.Tensor


def batches(pairs: Sequence[LoraPair]) -> Iterator[Batch]:
    """Yield all pairs in batches of one rank and shape."""
    alike: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for n, pair in enumerate(pairs):
        alike.setdefault((pair.A.shape, pair.B.shape), []).append(n)
    for shapes, places in alike.items():
        at_once = max(1, _ENTRIES // sum(map(math.prod, shapes)))
        for start in range(0, len(places), at_once):
            index = places[start : start + at_once]
            chosen = [pairs[n] for n in index]
            yield Batch(
                torch.tensor(index),
                torch.stack([pair.A for pair in chosen]).double(),
                torch.stack([pair.B for pair in chosen]).double(),
                torch.tensor([pair.scaling for pair in chosen], dtype=torch.float64),
            )


def squared_norms(pairs: Sequence[LoraPair]) -> torch.Tensor:
    """Return ``||dW_e||_F^2`` of updates of one layer, (E,) float64."""
    found = torch.zeros(len(pairs), dtype=torch.float64)
    for batch in batches(pairs):
        read, write = batch.A @ batch.A.mT, batch.B.mT @ batch.B
        found[batch.index] = batch.scaling.square() * (read * write).sum((1, 2))
    return found.clamp_min(0)


def inner_products(ones: Sequence[LoraPair], others: Sequence[LoraPair]) -> torch.Tensor:
    """Return the Frobenius inner products of updates of one layer, (E, F) float64.

    ``<dW_e, dW_f> = s_e s_f sum((A_e A_f^T) * (B_e^T B_f))``, in products over many pairs.
    """
    found = torch.zeros(len(ones), len(others), dtype=torch.float64)
    for one in batches(ones):
        for other in batches(others):
            size = (len(one.index), one.A.shape[1], len(other.index), other.A.shape[1])
            read = one.A.flatten(0, 1) @ other.A.flatten(0, 1).T
            read *= one.B.mT.flatten(0, 1) @ other.B.mT.flatten(0, 1).T
            sums = read.view(size).sum((1, 3)) * one.scaling[:, None] * other.scaling
            found[one.index[:, None], other.index] = sums
    return found
