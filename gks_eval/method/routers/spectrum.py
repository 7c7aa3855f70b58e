"""The singular values and input directions of an update, from its factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gks_eval.method.batches import Batch, batches
from gks_eval.method.lora import LoraPair

__all__ = ["Spectra", "spectra", "spectral_pairs", "spectrum"]

# Below this share of sum_r |B_r| |A_r| a singular value is a rounding error of float32 factors
# (1.2e-7 per entry), and its vector is arbitrary.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Spectra:
    """The spectra of a batch of updates ``dW = U S V^T``, in float64; Q is at most R.

    The signs are arbitrary and set so that the entry of largest magnitude in each row of V^T is
    positive. Values that are rounding errors are set to zero, and so are their rows.

    Attributes:
        batch: The updates.
        values: S, (N, Q).
        rows: V^T, (N, Q, K).
    """

    batch: Batch
    values: torch.Tensor
    rows: torch.Tensor


def spectra(pairs: Sequence[LoraPair], most: int | None = None) -> Iterator[Spectra]:
    """Yield the spectra of updates of one layer, batch by batch; with `most`, the first rows only.

    ``B A`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A`` is ``Q_B (R_B R_A^T) Q_A^T``, so an SVD of
    the core, at most R x R, suffices.
    """
    for batch in batches(pairs):
        A, B = batch.A, batch.B
        basis_A, core_A = torch.linalg.qr(A.mT)
        core_B = torch.linalg.qr(B, mode="r").R
        _, values, right = torch.linalg.svd(core_B @ core_A.mT, full_matrices=False)
        values, right = values[:, :most], right[:, :most]
        rows = right @ basis_A.mT
        largest = rows.gather(2, rows.abs().argmax(dim=2, keepdim=True))
        # Summed over the rank: rows of very different size are common in stacked pairs.
        sizes = (A.norm(dim=2) * B.norm(dim=1)).sum(1, keepdim=True)
        real = values > _ROUNDING * sizes
        values = batch.scaling.abs()[:, None] * values * real
        yield Spectra(batch, values, rows * largest.sign() * real[..., None])


def spectrum(pairs: Sequence[LoraPair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return S, (Q,), and V^T, (Q, K), of every update, see `Spectra`."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in spectra(pairs):
        found |= zip(
            part.batch.index.tolist(), zip(part.values, part.rows, strict=True), strict=True
        )
    return [found[n] for n in range(len(pairs))]


def spectral_pairs(pairs: Sequence[LoraPair]) -> list[LoraPair]:
    """Return the same updates with ``A = V^T`` and ``B = U S``, scaling 1.

    ``U S = dW V``, so that the signs of U follow from those of V.
    """
    found: dict[int, LoraPair] = {}
    for part in spectra(pairs):
        batch = part.batch
        left = batch.scaling[:, None, None] * (batch.B @ (batch.A @ part.rows.mT))
        for n, A, B in zip(batch.index.tolist(), part.rows, left, strict=True):
            found[n] = LoraPair(A.to(pairs[n].A.dtype), B.to(pairs[n].B.dtype))
    return [found[n] for n in range(len(pairs))]
