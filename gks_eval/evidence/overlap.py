"""Reads the versioned JSON of overlap: ``overlap.json`` and ``overlap_*.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, model_validator

from gks_eval.errors import ResultsError
from gks_eval.evidence.observed import files_named
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import OverlapSchema
from gks_eval.util.yaml import FrozenModel

__all__ = ["Overlap", "TaskOverlap", "find_overlaps"]

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
_FILE: Final = JsonFile("file of overlap", ResultsError, "write it again", limit=1 << 27)


class TaskOverlap(FrozenModel):
    """One task.

    Attributes:
        items: Its items.
        short: Those with no n-gram.
        ngram: Share of items that share an n-gram with a training row.
        question: Share of items whose whole question occurs in a training row.
        adapters: Both as numbers of items, by adapter.
    """

    items: Count
    short: Count
    ngram: Share
    question: Share
    adapters: dict[str, dict[str, Count]]

    @model_validator(mode="after")
    def _within_items(self) -> TaskOverlap:
        counts = (count for counts in self.adapters.values() for count in counts.values())
        if max(self.short, *counts, 0) > self.items:
            raise ValueError("a count is larger than the number of items")
        return self


class Overlap(FrozenModel):
    """Overlap of a library's training rows with the items of tasks.

    Attributes:
        library: The library's name.
        n: Words of an n-gram.
        tasks: By task.
        provenance: How the file was made.
    """

    schema_: OverlapSchema = Field(alias="schema")
    library: str
    n: Annotated[int, Field(ge=2)]
    tasks: dict[str, TaskOverlap]
    provenance: dict[str, str] = Field(default_factory=dict)


def find_overlaps(folder: Path) -> list[Overlap]:
    """Read every file of overlap under a folder.

    Raises:
        ResultsError: A file is broken or of another schema.
    """
    return [_FILE.read_as(path, Overlap) for path in files_named(folder, "overlap")]
