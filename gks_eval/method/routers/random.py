"""Random prototypes: a control for routers that score experts by their updates."""

from __future__ import annotations

import torch
from pydantic import Field

from gks_eval.method.controls import generator_of
from gks_eval.method.declaration import Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.arrow import LayerArrow
from gks_eval.method.routers.top_k import TopK

__all__ = ["Seeded", "random"]


class Seeded(TopK):
    """Parameters of a router that is a control."""

    seed: int = Field(default=0, ge=0, description="Seed of the control.")


@router(paper="a control", parameters=Seeded)
def random(layer: Layer, parameters: Seeded) -> Prepared:
    """Arrow with fixed random unit vectors as prototypes, independent of the experts.

    The prototypes, (E, K), are normalised Gaussian vectors that the seed and the layer's name
    determine: routing is the same in every run and batch. An expert that does not update the
    layer has the prototype zero and is chosen only after all others.
    """
    generator = generator_of(parameters.seed, layer.name)
    shape = len(layer.residuals), layer.residuals[0].shape[1]
    directions = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    missing = torch.tensor([pair.missing for pair in layer.residuals])
    directions[missing] = 0.0
    used = missing if bool(missing.any()) else None
    return Prepared(LayerArrow(parameters.top_k, parameters.temperature, used), directions)
