"""The file that says where a setting of a grid spent its time: ``profile.json`` in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, model_validator

from gks_eval.errors import ResultsError
from gks_eval.util.files import write_text
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import PROFILE, ProfileSchema
from gks_eval.util.yaml import FrozenModel

__all__ = ["PHASES", "CellProfile", "read_profile", "write_profile"]

PHASES: Final = (
    "loading",
    "prompts",
    "tokenising",
    "planning",
    "transformer",
    "router",
    "head",
    "writing",
    "other",
)
_NAME: Final = "profile.json"
_FILE: Final = JsonFile("profile of a setting", ResultsError, "run the setting again")

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class CellProfile(FrozenModel):
    """Where one setting spent its time.

    Attributes:
        seconds: All of it.
        phases: Seconds by phase, of `PHASES`; together at most `seconds`.
        tokens: Input tokens that lm-eval's own scorer runs, without padding.
        distinct_tokens: Distinct input prefixes, which the packed scorer runs.
    """

    schema_: ProfileSchema = Field(alias="schema", default=PROFILE)
    seconds: Seconds
    phases: dict[str, Seconds]
    tokens: Count
    distinct_tokens: Count

    @model_validator(mode="after")
    def _parts(self) -> CellProfile:
        if unknown := sorted(set(self.phases) - set(PHASES)):
            raise ValueError(f"phases.{unknown[0]} is unknown")
        if sum(self.phases.values()) > self.seconds * (1 + 1e-9) + 1e-9:
            raise ValueError("phases take longer than seconds")
        return self


def write_profile(folder: Path, profile: CellProfile) -> None:
    """Write a setting's profile into its folder."""
    content = profile.model_dump(mode="json", by_alias=True)
    write_text(folder / _NAME, json.dumps(content, indent=1) + "\n")


def read_profile(folder: Path) -> CellProfile | None:
    """Return the profile of a setting; None if it ran without one.

    Raises:
        ResultsError: The file is broken or of another schema.
    """
    path = folder / _NAME
    return _FILE.read_as(path, CellProfile) if path.is_file() else None
