"""Prototypes of experts: the input direction that an update amplifies most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gks_eval.method.lora import LoraPair
from gks_eval.method.routers.spectrum import spectrum

__all__ = ["prototype", "prototypes"]


def prototype(pair: LoraPair) -> torch.Tensor:
    """Return the top right singular vector of the pair's update, (K,), float32.

    Its entry of largest magnitude is positive. An update of zero has the prototype zero.
    """
    _, right = spectrum(pair)
    return right[0].float()


def prototypes(pairs: Sequence[LoraPair]) -> torch.Tensor:
    """Return the prototypes of several experts at one layer, (E, K), float32."""
    return torch.stack([prototype(pair) for pair in pairs])
