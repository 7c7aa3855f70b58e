"""Arrow: tokens go to the experts whose prototypes they are most aligned with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from pydantic import Field, field_validator
from pydantic.config import JsonDict

from gks_eval.method.declaration import Layer, Prepared, Tokens
from gks_eval.method.decorators import router
from gks_eval.method.routers.input_norm import InputNorm, centred, token_sizes
from gks_eval.method.routers.prototypes import (
    ProtoNorm,
    ProtoScale,
    normalised,
    prototypes,
    scales,
)
from gks_eval.method.routers.top_k import LayerTopK, LevelledTopK, Scale

__all__ = ["ArrowParameters", "LayerArrow", "arrow", "scaled_prototypes"]

_SINCE: Final[JsonDict] = {"since": "0.2.0"}


class ArrowParameters(LevelledTopK):
    """Parameters of Arrow; the defaults are those of its authors' code, except `top_k`."""

    temperature: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Divides the scores before the softmax; 0 or less for sqrt(K).",
    )
    input_norm: InputNorm = Field(
        default="id",
        description="Norm of the token: id (none), layer (LayerNorm) or unit.",
        json_schema_extra=_SINCE,
    )
    proto_norm: ProtoNorm = Field(
        default="id",
        description="Norm of a prototype: id (none), layer, unit or experts.",
        json_schema_extra=_SINCE,
    )
    proto_scale: ProtoScale = Field(
        default="none",
        description="Factor of a prototype: none, singular (value) or squared.",
        json_schema_extra=_SINCE,
    )

    @field_validator("temperature")
    @classmethod
    def _one_word(cls, temperature: float) -> float:
        # All values that mean sqrt(K), -0.0 too, are one setting.
        return temperature if temperature > 0 else 0.0


@dataclass(frozen=True)
class LayerArrow(LayerTopK):
    """Top-k softmax over ``|norm(x) . prototype|``; experts with a zero prototype are dead."""

    input_norm: InputNorm = "id"

    @classmethod
    def at(cls, directions: torch.Tensor, parameters: ArrowParameters) -> Prepared:
        """Prepare a layer with scaled prototypes, (E, K) float32, zero for experts without one."""
        dead = ~directions.any(dim=1)
        used = dead if bool(dead.any()) else None
        directions = normalised(directions, parameters.proto_norm)
        if parameters.input_norm == "layer":
            directions = centred(directions)
        temperature = parameters.temperature or directions.shape[1] ** 0.5
        choose = cls(parameters.top_k, temperature, used, parameters.input_norm)
        return Prepared(choose, directions)

    @property
    def of_raw(self) -> Scale:
        """Magnitudes of the products."""
        return "magnitude"

    @property
    def scales_products(self) -> bool:
        """Tokens are at most normalised."""
        return True

    def raw(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        if self.input_norm == "id":
            return tokens.scores
        return tokens.scores / token_sizes(tokens.x, self.input_norm)

    def scores(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        return self.raw(tokens).abs()


def scaled_prototypes(layer: Layer, parameters: ArrowParameters) -> torch.Tensor:
    """Return the prototypes times their `proto_scale`, (E, K) float32."""
    pairs = layer.prototyped.residuals
    directions = prototypes(pairs)
    if parameters.proto_scale == "none":
        return directions
    return directions * scales(pairs, parameters.proto_scale)


@router(paper="Ostapenko et al. 2024, https://arxiv.org/abs/2405.11157", parameters=ArrowParameters)
def arrow(layer: Layer, parameters: ArrowParameters) -> Prepared:
    """Softmax over the largest ``|x . p_e|``; p_e is the top right singular vector of dW_e.

    p_e, (K,), is the prototype of expert e; dW_e is the update of its residual. An expert whose
    residual is zero has the prototype zero and is chosen only after all others. Tied layers share
    p_e, see `gks_eval.method.tied`.

    With ``proto_scale``, p_e is multiplied by the singular value of dW_e or its square. The norms
    of x and of the p_e are those of MTTL's code. With ``proto_norm=experts``, the scores depend on
    the signs of the p_e; their entry of largest magnitude is positive.
    """
    return LayerArrow.at(scaled_prototypes(layer, parameters), parameters)
