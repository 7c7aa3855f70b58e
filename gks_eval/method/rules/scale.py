"""How strongly a rule subtracts."""

from __future__ import annotations

from pydantic import Field

from gks_eval.method.declaration import Parameters

__all__ = ["Scaled"]


class Scaled(Parameters):
    """Parameters of a rule that subtracts a multiple of the general part."""

    scale: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Multiplies what is subtracted; a negative value adds it.",
        json_schema_extra={"since": "0.2.0"},
    )
