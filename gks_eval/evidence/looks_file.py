"""``looks.json``: every look of a gate that stops early."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from gks_eval.errors import ResultsError
from gks_eval.evidence.verdict import Verdict
from gks_eval.util.json_file import JsonFile
from gks_eval.util.yaml import FrozenModel

__all__ = ["LOOKS_FILE", "CheckAtLook", "Look", "LooksFile", "read_looks"]

LOOKS_FILE: Final = "looks.json"
_FILE: Final = JsonFile("file of looks", ResultsError, "delete it or run the gate again")


class CheckAtLook(FrozenModel):
    """One check at one look.

    Attributes:
        name: The check's.
        metric: Its metric.
        n: Items read.
        changed: Clusters that changed; a lone item is its own cluster.
        change: Candidate minus baseline; negative is worse.
        z: Score of a change of minus the tolerated drop.
        lower: z at or below which it is a regression; None if this look tests none.
        upper: z at or above which it passes; None if this look does not judge by z.
        p_shown: One-sided p-value of not being worse by the tolerated drop.
        state: Where it stands after this look.
    """

    name: str
    metric: str
    n: int
    changed: int | None
    change: float | None
    z: float | None
    lower: float | None
    upper: float | None
    p_shown: float | None
    state: Literal["open", "regression", "shown"]


class Look(FrozenModel):
    """One look: the share of the items, the items read per task, and every check.

    Attributes:
        share: Share of the items that the look is at.
        items: Items read so far, per task.
        seconds: Seconds since the previous look.
        checks: The checks.
    """

    share: float
    items: dict[str, int]
    seconds: float
    checks: list[CheckAtLook]


class LooksFile(FrozenModel):
    """``looks.json``: every look of a gate, and its verdict once it has one."""

    schema_: Literal["gks_eval.looks/1"] = Field(
        default="gks_eval.looks/1", alias="schema", serialization_alias="schema"
    )
    setting: str
    baseline: str
    items: dict[str, int]
    looks: list[Look]
    verdict: Verdict | None = None

    @model_validator(mode="after")
    def _same_checks(self) -> LooksFile:
        names = {tuple(check.name for check in look.checks) for look in self.looks}
        if len(names) > 1:
            raise ValueError("the looks do not have the same checks")
        return self

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_looks(folder: Path) -> LooksFile | None:
    """Read a folder's ``looks.json``; None if there is none.

    Raises:
        ResultsError: It is broken or of another schema.
    """
    path = folder / LOOKS_FILE
    return _FILE.read_as(path, LooksFile) if path.exists() else None
