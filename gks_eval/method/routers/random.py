"""Random prototypes: a control for routers that score experts by their updates."""

from __future__ import annotations

import torch
from pydantic import Field

from gks_eval.method.controls import generator_of
from gks_eval.method.declaration import CONTROL, Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.arrow import ArrowParameters, LayerArrow
from gks_eval.method.routers.prototypes import scales

__all__ = ["Seeded", "random"]


class Seeded(ArrowParameters):
    """Parameters of a router that is a control."""

    seed: int = Field(default=0, ge=0, description="Seed of the control.")


@router(paper=CONTROL, parameters=Seeded)
def random(layer: Layer, parameters: Seeded) -> Prepared:
    """Arrow with fixed random unit vectors as prototypes, independent of the experts.

    The prototypes, (E, K), are normalised Gaussian vectors that the seed and the layer's name
    determine: routing is the same in every run and batch. An expert that does not update the
    layer has the prototype zero and is chosen only after all others. Tied layers share their
    prototypes; ``proto_scale`` multiplies them by the experts' singular values.
    """
    shared = layer.prototyped
    generator = generator_of(parameters.seed, shared.name)
    shape = len(shared.residuals), shared.residuals[0].shape[1]
    directions = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    if parameters.proto_scale != "none":
        directions = directions * scales(shared.residuals, parameters.proto_scale)
    directions[torch.tensor([pair.missing for pair in shared.residuals])] = 0.0
    return LayerArrow.at(directions, parameters)
