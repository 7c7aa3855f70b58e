"""Merges that drop entries before they add: PEFT's functions on the factors or on the updates.

``on=factors`` prunes and merges all A's, then all B's, as PEFT's `add_weighted_adapter` does, and
keeps the rank. ``on=delta`` prunes and merges the updates and truncates the result to a rank, as
PEFT's ``*_svd``. It forms every update as a full matrix, E x D x K numbers, because the factors do
not show which entries are largest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field

from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair, same_factors
from gks_eval.method.merges.span import truncated
from gks_eval.method.merges.weight import Weighted
from gks_eval.method.seeds import layer_seed

__all__ = [
    "Dropped",
    "DroppedElected",
    "Elected",
    "Pruned",
    "merge_tensors",
    "on_factors",
    "pruned",
]


class Pruned(Weighted):
    """Parameters of a merge that keeps a share of the entries and adds them up."""

    density: float = Field(default=0.2, gt=0, le=1, description="Share of the entries kept.")
    on: Literal["factors", "delta"] = Field(
        default="factors", description="What is pruned: A and B, or dW."
    )
    rank: int | None = Field(
        default=None, ge=1, description="Rank under on=delta; by default the experts' largest."
    )


class Elected(Pruned):
    """Parameters of a merge that keeps a share of the entries and averages those of one sign."""

    weight: float = Field(
        default=1.0, alias="lambda", allow_inf_nan=False, description="Multiplies the result."
    )


class Dropped(Pruned):
    """Parameters of a merge that drops entries at random and adds up the others."""

    # Not 0.2: on the factors, an entry that is kept grows by 1 / density in A and in B.
    density: float = Field(default=0.5, gt=0, le=1, description="Share of the entries kept.")
    seed: int = Field(default=0, ge=0, description="Seed of the random choice.")


class DroppedElected(Dropped):
    """Parameters of a merge that drops entries at random and averages those of one sign."""

    weight: float = Field(
        default=1.0, alias="lambda", allow_inf_nan=False, description="Multiplies the result."
    )


def on_factors(parameters: Pruned) -> bool:
    """Return whether A's and B's are merged, which needs equal ranks and scalings."""
    return parameters.on == "factors"


def pruned(layer: Layer, parameters: Pruned, method: str) -> LoraPair:
    """Return the merged pair.

    Args:
        layer: The layer, with its residuals.
        parameters: The merge's parameters.
        method: Name of the function in `peft.utils.merge_utils`.

    Raises:
        CompatibilityError: Ranks or scalings differ under ``on=factors``.
    """
    pairs, weight = layer.residuals, parameters.of(layer.residuals)
    with forked(getattr(parameters, "seed", 0), layer.name):
        if parameters.on == "factors":
            same_factors(pairs, f"merge:{method}", "on=delta")
            A = merge_tensors(method, [pair.A for pair in pairs], parameters.density)
            B = merge_tensors(method, [pair.B for pair in pairs], parameters.density)
            return LoraPair(A, B, weight * pairs[0].scaling)
        update = merge_tensors(method, [pair.delta() for pair in pairs], parameters.density)
    rank = parameters.rank or max(pair.rank for pair in pairs)
    return truncated(weight * update, rank)


@contextmanager
def forked(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global generator, which PEFT uses, for a layer inside a `with` block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(layer_seed(seed, name))
        yield


def merge_tensors(method: str, tensors: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """Merge tensors of one shape with weights of 1 by a function of `peft.utils.merge_utils`.

    Args:
        method: ``ties``, ``dare_linear``, ``dare_ties`` or ``magnitude_prune``.
        tensors: One per expert.
        density: Share of the entries that is kept.
    """
    from peft.utils import merge_utils

    ones = torch.ones(len(tensors), dtype=tensors[0].dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density .* no pruning", UserWarning)
        merged: torch.Tensor = getattr(merge_utils, method)(list(tensors), ones, density)
    return merged.to(tensors[0].dtype)  # ties returns float32 for 16 bits
