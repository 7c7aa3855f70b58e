"""Shuffled prototypes: a control that assigns them to other experts."""

from __future__ import annotations

import torch

from gks_eval.method.controls import derangement, generator_of
from gks_eval.method.declaration import CONTROL, Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.arrow import LayerArrow, scaled_prototypes
from gks_eval.method.routers.random import Seeded

__all__ = ["shuffled"]


@router(paper=CONTROL, parameters=Seeded)
def shuffled(layer: Layer, parameters: Seeded) -> Prepared:
    """Arrow with the prototypes exchanged among the experts; no expert keeps its own.

    Seed and layer name determine the exchange, one derangement per layer. An expert whose residual
    is zero takes no part and is chosen only after all others. Tied layers share the exchange.
    """
    directions = scaled_prototypes(layer, parameters)
    alive = directions.any(dim=1)
    generator = generator_of(parameters.seed, layer.prototyped.name)
    order = derangement(int(alive.sum()), generator)
    directions[alive] = directions[alive][torch.tensor(order, dtype=torch.long)]
    return LayerArrow.at(directions, parameters)
