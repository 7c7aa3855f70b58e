"""The updates of a layer in the space that they span together.

With orthonormal bases U, (D, P), of the columns of all B's and V, (Q, K), of the rows of all A's,
every update is ``dW_e = U C_e V`` with a core C_e, (P, Q), where P and Q are at most the sum of the
ranks. Merges can work on the cores, and no matrix of size D x K is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gks_eval.method.lora import LoraPair
from gks_eval.method.rules.rounding import ROUNDING

__all__ = ["Span", "column_space", "common_span", "low_rank", "singular_triplets", "truncated"]


@dataclass(frozen=True)
class Span:
    """The updates of all experts at one layer, float64.

    Attributes:
        left: (D, P), orthonormal columns.
        cores: (P, Q) for every expert.
        right: (Q, K), orthonormal rows.
        dtype: Type of the adapters.
    """

    left: torch.Tensor
    cores: list[torch.Tensor]
    right: torch.Tensor
    dtype: torch.dtype

    def pair(self, core: torch.Tensor, rank: int | None = None) -> LoraPair:
        """Return ``left @ core @ right`` as a pair of rank min(P, Q).

        Args:
            core: (P, Q).
            rank: If given, the best approximation of at most this rank.
        """
        return low_rank(self.left, core, self.right, rank, self.dtype)


def common_span(pairs: Sequence[LoraPair]) -> Span:
    """Return the span of several updates of one layer.

    The bases are the left singular vectors of ``[B_1 | ...]`` and the right ones of
    ``[A_1; ...]``, without scalings; directions of zero size are left out.
    """
    A = torch.cat([pair.A for pair in pairs]).double()
    B = torch.cat([pair.B for pair in pairs], dim=1).double()
    left, right = column_space(B), column_space(A.T).T
    cores = [
        pair.scaling * (left.T @ pair.B.double()) @ (pair.A.double() @ right.T) for pair in pairs
    ]
    return Span(left, cores, right, pairs[0].A.dtype)


def column_space(matrix: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of a matrix's columns, by its left singular vectors.

    Directions whose singular values are rounding errors are left out; at least one is returned.
    """
    u, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    noise = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    kept = max(1, int((singular > noise * singular[0]).sum()))
    basis: torch.Tensor = u[:, :kept]
    return basis


def low_rank(
    left: torch.Tensor,
    core: torch.Tensor,
    right: torch.Tensor,
    rank: int | None,
    dtype: torch.dtype,
) -> LoraPair:
    """Return the pair of ``left @ core @ right`` for orthonormal `left` and `right`.

    By the SVD of the core: B has the singular values, A's rows are orthonormal, the scaling is 1.
    """
    u, singular, v = torch.linalg.svd(core, full_matrices=False)
    B = left @ (u[:, :rank] * singular[:rank])
    return LoraPair((v[:rank] @ right).to(dtype), B.to(dtype))


def truncated(update: torch.Tensor, rank: int) -> LoraPair:
    """Return the best pair of at most `rank` for an update given as a (D, K) matrix."""
    wide = update.to(torch.promote_types(update.dtype, torch.float32))  # no SVD in 16 bits
    u, singular, v = torch.linalg.svd(wide, full_matrices=False)
    return LoraPair(v[:rank].to(update.dtype), (u[:, :rank] * singular[:rank]).to(update.dtype))


def singular_triplets(pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U (D, M), S (M,) and V (M, K) of an update, in float64.

    Values that are rounding errors, as where factors cancel, are left out: M is at most
    the rank, and 0 for an update of zero.
    """
    A, B = pair.A.double(), pair.B.double()
    basis_B, core_B = torch.linalg.qr(B)
    basis_A, core_A = torch.linalg.qr(A.T)
    u, singular, v = torch.linalg.svd(pair.scaling * core_B @ core_A.T, full_matrices=False)
    size = abs(pair.scaling) * (A.norm(dim=1) @ B.norm(dim=0))
    kept = int((singular > ROUNDING * torch.finfo(pair.A.dtype).eps * size).sum())
    return basis_B @ u[:, :kept], singular[:kept], v[:kept] @ basis_A.T
