"""The arguments of a setting that replace adapters with stand-ins: controls."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field
from pydantic.config import JsonDict

from gks_eval.method.declaration import Method, Parameters

__all__ = ["EXPERT_IN_PLACE", "STAND_INS", "StandIns"]

EXPERT_IN_PLACE: Final = "expert:"
_SINCE: Final[JsonDict] = {"since": "0.2.0"}


class StandIns(Parameters):
    """The stand-ins for general adapters and experts, see `gks_eval.method.controls`."""

    general: str = Field(
        default="own",
        pattern=r"^(own|random|rotated|permuted|other|expert:.+)$",
        description="What is subtracted: own, random, rotated, permuted, other or expert:NAME.",
        json_schema_extra={
            **_SINCE,
            "expected": "one of own, random, rotated, permuted, other, expert:NAME",
        },
    )
    experts: Literal["own", "random", "rescaled"] = Field(
        default="own",
        description="What is mixed: own, random or rescaled experts.",
        json_schema_extra=_SINCE,
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the stand-ins.", json_schema_extra=_SINCE
    )

    @property
    def used(self) -> bool:
        """Whether any adapter is replaced."""
        return (self.general, self.experts) != ("own", "own")

    @property
    def expert(self) -> str | None:
        """The expert that is subtracted in place of the general adapters, if one is named."""
        if self.general.startswith(EXPERT_IN_PLACE):
            return self.general.removeprefix(EXPERT_IN_PLACE)
        return None


STAND_INS: Final = Method("stand_ins", "Controls: stand-ins for adapters.", "", StandIns, "")
