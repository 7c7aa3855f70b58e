"""Products of a layer's input with the stacked rows that are read."""

from __future__ import annotations

import torch

from gks_eval.method.declaration import Tokens
from gks_eval.method.mixing.split import joined_rows, joined_scores, wide_mm
from gks_eval.method.weights import RoutedWeights

__all__ = ["read_all", "read_scores", "wide_product"]

WIDENED_AT_ONCE = 256
"""Tokens per block when a CPU converts 16-bit activations to float32 for the scores."""


def read_all(x_TK: torch.Tensor, weights: RoutedWeights) -> Tokens:
    """Return all that a router can read of these tokens."""
    inner = weights.write.shape[0]
    if weights.parts and torch.is_grad_enabled():
        # The product into float32 has no gradient.
        directions = joined_rows(weights.fused, weights.parts, weights.unscale)
        return Tokens(x_TK, wide_product(x_TK, directions), x_TK @ weights.read[:inner].T)
    if weights.parts:
        return _read_split(x_TK, weights, weights.read, inner)
    read_TM = torch.mm(x_TK, weights.read_columns)
    if weights.directions is not None:
        return Tokens(x_TK, wide_product(x_TK, weights.directions), read_TM)
    inner_TM, scores_TN = read_TM.split_with_sizes((inner, read_TM.shape[1] - inner), 1)
    return Tokens(x_TK, scores_TN.float(), inner_TM)


def _read_split(
    x_TK: torch.Tensor, weights: RoutedWeights, rows: torch.Tensor, inner: int
) -> Tokens:
    read_TM = wide_mm(x_TK, rows)
    scores_TN = joined_scores(read_TM[:, inner:], weights.parts, weights.unscale)
    return Tokens(x_TK, scores_TN, read_TM[:, :inner])


def read_scores(x_TK: torch.Tensor, weights: RoutedWeights) -> Tokens:
    """Return scores, and only the general part's inner activations, (T, M - M_e)."""
    general = weights.write.shape[0] - weights.stacked
    below = weights.read[weights.stacked :]
    if weights.parts:
        return _read_split(x_TK, weights, below, general)
    read_TM = x_TK @ below.T if len(below) else x_TK.new_empty(len(x_TK), 0)
    if weights.directions is not None:
        return Tokens(x_TK, wide_product(x_TK, weights.directions), read_TM)
    return Tokens(x_TK, read_TM[:, general:].float(), read_TM[:, :general])


def wide_product(x_TK: torch.Tensor, directions_NK: torch.Tensor) -> torch.Tensor:
    """Return the scores of 16-bit activations, ``x . p`` in float32, (T, N)."""
    # A float32 copy of all tokens would not fit into a CPU's cache, and would be most of the
    # memory that routing needs.
    if torch.is_grad_enabled() or x_TK.device.type != "cpu" or x_TK.shape[0] <= WIDENED_AT_ONCE:
        return x_TK.float() @ directions_NK.T
    scores_TN = x_TK.new_empty((x_TK.shape[0], directions_NK.shape[0]), dtype=torch.float32)
    for start in range(0, x_TK.shape[0], WIDENED_AT_ONCE):
        part = slice(start, start + WIDENED_AT_ONCE)
        torch.mm(x_TK[part].float(), directions_NK.T, out=scores_TN[part])
    return scores_TN
