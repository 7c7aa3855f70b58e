"""How strongly a merge applies."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gks_eval.method.declaration import Parameters

__all__ = ["Multiplied", "Weighted"]


class Multiplied(Parameters):
    """Parameters of a merge whose result is multiplied."""

    weight: float = Field(
        default=1.0, alias="lambda", allow_inf_nan=False, description="Multiplies the result."
    )


class Weighted(Parameters):
    """Parameters of a merge that sums the updates, each with the same weight."""

    weight: float | None = Field(
        default=None,
        alias="lambda",
        allow_inf_nan=False,
        description="Weight of every update; by default 1/E.",
    )

    def of(self, updates: Sequence[object]) -> float:
        """Return the weight of each update."""
        return 1.0 / len(updates) if self.weight is None else self.weight
