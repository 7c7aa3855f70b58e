"""Prototypes of experts: the input direction that an update amplifies most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn.functional import layer_norm

from gks_eval.method.lora import LoraPair
from gks_eval.method.routers.input_norm import LAYER_EPS, SMALLEST
from gks_eval.method.routers.spectrum import spectra

__all__ = ["ProtoNorm", "ProtoScale", "normalised", "prototype", "prototypes", "scales"]

ProtoNorm = Literal["id", "layer", "unit", "experts"]
ProtoScale = Literal["none", "singular", "squared"]


def prototype(pair: LoraPair) -> torch.Tensor:
    """Return the top right singular vector of the pair's update, (K,), float32.

    Its entry of largest magnitude is positive. An update of zero has the prototype zero.
    """
    return prototypes([pair])[0]


def prototypes(pairs: Sequence[LoraPair]) -> torch.Tensor:
    """Return the prototypes of several experts at one layer, (E, K), float32."""
    found = torch.empty(len(pairs), pairs[0].shape[1])
    for part in spectra(pairs, most=1):
        found[part.batch.index] = part.rows[:, 0].float()
    return found


def scales(pairs: Sequence[LoraPair], scale: ProtoScale) -> torch.Tensor:
    """Return what multiplies each prototype, (E, 1), float32.

    It is the largest singular value of the update, or its square; 1 for ``none``.
    """
    if scale == "none":
        return torch.ones(len(pairs), 1)
    top = torch.empty(len(pairs), 1, dtype=torch.float64)
    for part in spectra(pairs, most=1):
        top[part.batch.index] = part.values[:, :1]
    return (top if scale == "singular" else top.square()).float()


def normalised(directions_EK: torch.Tensor, norm: ProtoNorm) -> torch.Tensor:
    """Return normalised prototypes, (E, K), float32; a prototype of zero stays zero.

    ``layer`` is a layer norm of each prototype, ``experts`` one of each input over the experts
    whose prototype is not zero, both without weight and bias (eps 1e-5); ``unit`` divides by the
    norm.
    """
    if norm == "id":
        return directions_EK
    wide = directions_EK.double()
    if norm == "unit":
        return torch.div(wide, wide.norm(dim=1, keepdim=True).clamp_min(SMALLEST)).float()
    if norm == "layer":
        return layer_norm(wide, wide.shape[1:], eps=LAYER_EPS).float()
    alive = wide.any(dim=1)
    over_experts = layer_norm(wide[alive].T, (int(alive.sum()),), eps=LAYER_EPS).T
    return torch.zeros_like(wide).masked_scatter(alive[:, None], over_experts).float()
