"""The content of a comparison over seeds, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from gks_eval.errors import ResultsError
from gks_eval.evidence.observed import files_named
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import REPLICATES, ReplicatesSchema
from gks_eval.util.yaml import FrozenModel

__all__ = ["FEW_SEEDS", "MEAN", "Replicates", "Row", "find_replicates"]

_FILE: Final = JsonFile(
    "file of replicates", ResultsError, "write it again with gks-eval compare --replicates"
)
# With fewer seeds the detectable change is part of the verdict.
FEW_SEEDS: Final = 5
MEAN: Final = "mean over tasks"


class Row(FrozenModel):
    """A method's change from the baseline on one task or average.

    Attributes:
        method: The method's label.
        name: Task, group, or ``mean over tasks``: all with scores between 0 and 1 of which a lower
            one is not better. They weigh the same.
        metric: ``metric,filter``; empty for ``mean over tasks``.
        binary: Whether the metric is an accuracy.
        higher_is_better: None if lm-eval does not record it.
        change: Mean over seeds, method minus baseline.
        low: Lower bound of its interval; None if nothing varies.
        high: Upper bound.
        p: Two-sided p-value with seeds and items as samples.
        p_holm: After Holm's correction over the method's tasks; None for averages.
        p_seeds: p-value of t over seeds, with the items taken as fixed.
        p_items: p-value of the item score, with the seeds taken as fixed.
        stderr_seeds: Standard error of the change from seeds.
        stderr_items: Standard error of the change from items.
        detectable: The change that is detected in 80% of cases at this level.
        by_seed: The change under each seed.
        n: Items.
        clusters: Clusters of linked items; None if no items are linked.
    """

    method: str
    name: str
    metric: str
    binary: bool
    higher_is_better: bool | None
    change: float
    low: float | None
    high: float | None
    p: float
    p_holm: float | None
    p_seeds: float
    p_items: float
    stderr_seeds: float
    stderr_items: float
    detectable: float | None
    by_seed: dict[str, float]
    n: int
    clusters: int | None


class Replicates(FrozenModel):
    """The result of `gks-eval compare --replicates`."""

    schema_: ReplicatesSchema = Field(
        default=REPLICATES, alias="schema", serialization_alias="schema"
    )
    baseline: str
    patterns: dict[str, str]
    seeds: list[str]
    confidence: float
    rows: Annotated[list[Row], Field(min_length=1)]
    notes: list[str]

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def find_replicates(folder: Path) -> list[Replicates]:
    """Read every ``replicates.json`` and ``replicates_*.json`` under a folder.

    Raises:
        ResultsError: A file is broken or of another schema.
    """
    return [_FILE.read_as(path, Replicates) for path in files_named(folder, "replicates")]
