"""What one layer holds to add its routed update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from gks_eval.method.choice import SparseRouter
from gks_eval.method.declaration import LayerRouter
from gks_eval.method.mixing.split import PARTS, accumulates_wide, joined_rows, split

__all__ = ["RoutedWeights", "Rows", "moved", "rows_of", "suited", "to_device"]

_Held = TypeVar("_Held")


@dataclass(frozen=True)
class Rows:
    """Which rows of the stacked factors belong to which expert.

    Attributes:
        ranks: Rows per expert, if all have equally many, else 0.
        of_expert: (E, R) int64, each expert's rows; the last ones are repeated up to the largest
            rank.
        owner: (M_e,) int64, each row's expert; None where `ranks` says it.
        counted: (E, R) float32, 0 for repeated rows; None if there are none.
    """

    ranks: int
    of_expert: torch.Tensor
    owner: torch.Tensor | None = None
    counted: torch.Tensor | None = None


def rows_of(ranks: Sequence[int]) -> Rows:
    """Return the table of experts with these ranks, stacked in order."""
    first = 0
    table, largest = [], max(ranks)
    for rank in ranks:
        table.append([first + min(row, rank - 1) for row in range(largest)])
        first += rank
    of_expert = torch.tensor(table)
    if len({*ranks}) == 1:
        return Rows(largest, of_expert)
    of_row = torch.tensor(ranks)
    owner = torch.arange(len(ranks)).repeat_interleave(of_row)
    counted = (torch.arange(largest) < of_row.unsqueeze(1)).float()
    return Rows(0, of_expert, owner, counted)


@dataclass(frozen=True)
class RoutedWeights:
    """What one layer needs to add its routed update; M is the sum of all stacked ranks.

    Attributes:
        router: Chooses the coefficients.
        read: The stacked A's of the experts and of the general part, (M, K); in float32 with the
            router's directions below, (M + N, K), so that one product serves both. On devices
            that multiply 16 bits into float32, the directions are below in 16-bit parts,
            (M + P N, K).
        write: (M, D), the stacked ``s B^T``; rows of the general part are negated.
        rows: Which of the M_e rows of the experts belongs to which.
        stacked: M_e.
        rank: Rank common to the experts, for ``factors``; 0 for ``outputs``.
        directions: (N, K) float32; None if the router has none, or if `read` holds them.
            Siblings hold them apart, see `gks_eval.method.siblings`.
        experts: E.
        present: (E,) float32, 1 for experts that update the layer and 0 for the others; None if
            the general part is not subtracted once, or is subtracted from all experts.
        by_context: Whether the router makes one choice per context, not per token.
        parts: P, see `gks_eval.method.mixing.split`; 0 if the directions are not split.
        unscale: (N,) float32, multiplies the scores of split directions; None for ones.
    """

    router: LayerRouter
    read: torch.Tensor
    write: torch.Tensor
    rows: Rows
    stacked: int
    rank: int
    directions: torch.Tensor | None
    experts: int
    present: torch.Tensor | None = None
    by_context: bool = False
    parts: int = 0
    unscale: torch.Tensor | None = None

    @property
    def fused(self) -> torch.Tensor:
        """Return the directions, (N, K), or their parts, (P N, K): the last rows of `read`."""
        return self.read[self.write.shape[0] :]

    @cached_property
    def read_columns(self) -> torch.Tensor:
        """Return `read` as the right side of a product, a view."""
        return self.read.T

    @cached_property
    def plans(self) -> dict[int, str]:
        """Return the cache of plans by number of tokens; `plan_of` fills it."""
        return {}

    @cached_property
    def sparse(self) -> SparseRouter | None:
        """Return the router if it chooses fewer than E experts per token, else None."""
        router = self.router
        if isinstance(router, SparseRouter) and 0 < router.top_k < self.experts:
            return router
        return None

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors except the router's."""
        rows = self.rows
        held = [self.read, self.write, rows.of_expert, rows.owner, rows.counted]
        held += [self.directions, self.present, self.unscale]
        return [one for one in held if one is not None]

    def nbytes(self) -> int:
        """Return the memory of all tensors, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def to_device(weights: RoutedWeights, device: torch.device) -> RoutedWeights:
    """Return the weights on another device, in the form that suits it."""
    return suited(moved(weights, device))


def suited(weights: RoutedWeights) -> RoutedWeights:
    """Return the weights with directions split if their device supports it, else whole."""
    directions = weights.directions
    if directions is not None and directions.dtype == weights.read.dtype:
        # They were separate only to be a view, see `gks_eval.method.siblings`.
        return replace(weights, read=torch.cat([weights.read, directions]), directions=None)
    read, rows = weights.read, weights.write.shape[0]
    wide = accumulates_wide(read.device, read.dtype)
    if wide and weights.directions is not None:
        parts, unscale = split(weights.directions, read.dtype)
        return replace(
            weights,
            read=torch.cat([read, parts]),
            directions=None,
            parts=PARTS[read.dtype],
            unscale=unscale,
        )
    if weights.parts and not wide:
        directions = joined_rows(weights.fused, weights.parts, weights.unscale)
        return replace(
            weights, read=read[:rows].clone(), directions=directions, parts=0, unscale=None
        )
    return weights


def moved(held: _Held, device: torch.device | str) -> _Held:
    """Return a dataclass with its tensors, also those of dataclasses in it, on `device`."""
    assert not isinstance(held, type)
    found: dict[str, Any] = {}
    for field in fields(held):  # type: ignore[arg-type]
        value = getattr(held, field.name)
        if isinstance(value, torch.Tensor):
            found[field.name] = value.to(device)
        elif is_dataclass(value):
            found[field.name] = moved(value, device)
    return replace(held, **found) if found else held  # type: ignore[type-var]
