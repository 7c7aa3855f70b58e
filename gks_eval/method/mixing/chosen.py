"""Mixing that writes only the chosen rows, and reads only these if the router allows it."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch.nn.functional import embedding_bag

from gks_eval.method.choice import Choice
from gks_eval.method.weights import RoutedWeights

__all__ = ["add_chosen", "has_sparse_products", "mixed_sparsely", "read_chosen", "rows_of_choice"]

GATHERED_AT_ONCE = 64
"""Tokens per block when the rows of their experts are copied; the copies stay in the cache."""


def rows_of_choice(choice: Choice, weights: RoutedWeights) -> torch.Tensor:
    """Return the rows of each token's experts in the stacked factors, (T, k R) int64."""
    return weights.rows.of_expert[choice.experts].flatten(1)


def read_chosen(x_TK: torch.Tensor, rows_TS: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return the products of every token with its own rows of ``weights.read``, (T, S)."""
    # With repeated rows (experts of smaller rank), S can exceed the columns of the sparse matrix.
    fits = rows_TS.shape[1] <= weights.stacked
    if fits and has_sparse_products(x_TK.device, x_TK.dtype):
        pattern = _sparse(rows_TS, x_TK.new_zeros(rows_TS.shape), weights.stacked)
        A_KM = weights.read[: weights.stacked].T
        found = torch.sparse.sampled_addmm(pattern, x_TK, A_KM, beta=0.0)
        z_TS: torch.Tensor = found.values()
        return z_TS.view_as(rows_TS)
    z_TS1 = x_TK.new_empty(*rows_TS.shape, 1)
    for start in range(0, len(x_TK), GATHERED_AT_ONCE):
        part = slice(start, start + GATHERED_AT_ONCE)
        A_TSK = weights.read[rows_TS[part]]
        torch.bmm(A_TSK, x_TK[part].unsqueeze(-1), out=z_TS1[part])
    return z_TS1.squeeze(-1)


def mixed_sparsely(choice: Choice, z_TS: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return what the chosen rows of ``weights.write`` are multiplied with, (T, S)."""
    rows, c_Tk1 = weights.rows, choice.shares.unsqueeze(-1)
    rank = z_TS.shape[1] // choice.shares.shape[1]
    z_TkR = z_TS.view(*choice.shares.shape, rank)
    if weights.rank:
        z_TkR = (c_Tk1 * z_TkR).sum(1, keepdim=True)
    mixed_TkR = c_Tk1 * z_TkR
    if rows.counted is not None:
        mixed_TkR = mixed_TkR * rows.counted[choice.experts]
    # The coefficients are float32. The products are rounded to the layer's type once, here.
    return mixed_TkR.flatten(1).to(z_TS.dtype)


def add_chosen(
    into_TD: torch.Tensor, rows_TS: torch.Tensor, mixed_TS: torch.Tensor, weights: RoutedWeights
) -> torch.Tensor:
    """Add each token's sum of its rows of ``weights.write`` in place."""
    if has_sparse_products(into_TD.device, into_TD.dtype):
        mixed_TM = _sparse(rows_TS, mixed_TS, weights.stacked)
        return into_TD.addmm_(mixed_TM, weights.write[: weights.stacked])
    sums_TD = embedding_bag(rows_TS, weights.write, per_sample_weights=mixed_TS, mode="sum")
    return into_TD.add_(sums_TD)


def _sparse(columns_TS: torch.Tensor, values_TS: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a sparse matrix with S entries per row, (T, columns)."""
    tokens, entries = columns_TS.shape
    return torch.sparse_csr_tensor(
        torch.arange(0, tokens * entries + 1, entries),
        columns_TS.flatten(),
        values_TS.flatten(),
        (tokens, columns),
        check_invariants=False,
    )


def has_sparse_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this build of torch multiplies such sparse matrices."""
    return device.type == "cpu" and dtype in (torch.float32, torch.float64) and _built_in()


@cache
def _built_in() -> bool:
    one = torch.ones(1, 1)
    with warnings.catch_warnings():
        # torch warns once per process that sparse CSR tensors are in beta.
        warnings.simplefilter("ignore")
        try:
            entry = _sparse(torch.zeros(1, 1, dtype=torch.long), one, 1)
            torch.sparse.sampled_addmm(entry, one, one)
            one.addmm(entry, one)
        except RuntimeError:
            return False
    return True
