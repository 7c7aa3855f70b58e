"""Merges tensors that represent the updates, for `knots` and `core_space`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from gks_eval.method.declaration import Parameters
from gks_eval.method.merges.pruning import forked, merge_tensors

__all__ = ["Inner", "inner_merge"]

_AVERAGING = ("ties", "dare_ties")


class Inner(Parameters):
    """Parameters of the inner merge; `knots` and `core_space` add ``inner``, its name."""

    weight: float | None = Field(
        default=None,
        alias="lambda",
        allow_inf_nan=False,
        description="Multiplies the inner merge; by default 1 for averages, 1/E for sums.",
    )
    density: float = Field(default=0.2, gt=0, le=1, description="Share of the entries kept.")
    seed: int = Field(default=0, ge=0, description="Seed of DARE's random choice.")


def inner_merge(
    inner: str, tensors: Sequence[torch.Tensor], parameters: Inner, name: str
) -> torch.Tensor:
    """Merge tensors of one shape entry by entry.

    Args:
        inner: ``mean`` for the weighted sum, or a function of `merge_tensors`.
        tensors: One per expert.
        parameters: The merge's parameters.
        name: The layer's name.
    """
    weight = parameters.weight
    if weight is None:
        weight = 1.0 if inner in _AVERAGING else 1.0 / len(tensors)
    if inner == "mean":
        return weight * torch.stack(list(tensors)).sum(0)
    with forked(parameters.seed, name):
        return weight * merge_tensors(inner, tensors, parameters.density)
