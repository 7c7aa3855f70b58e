"""The results of a benchmark run, as JSON with the schema ``gks_eval.bench/1``.

Seconds are per call, and ratios are of seconds. Contestants are ``base`` (no
adapters), ``routed`` (ours), ``peft`` (PEFT's Arrow); in evaluations they carry the scorer and the
batch size: ``peft 8``, ``base 8``, ``plain 8``, ``packed``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from benchmarks.record.evaluations import (
    Agreement,
    Evaluation,
    EvaluationSet,
    GenerationRow,
    PlainForward,
)
from benchmarks.record.layers import ExpertsRow, LayerRow, RouterRow
from benchmarks.record.models import FullEvaluation, FullModel, ModelForward, ModelRow, Phase
from benchmarks.record.processes import Growth, GrowthPoint, LibraryRow, Startup
from benchmarks.record.timed import Ratio, Timing
from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonFile
from gks_eval.util.yaml import FrozenModel

__all__ = [
    "SCHEMA", "Agreement", "Bar", "Evaluation", "EvaluationSet", "ExpertsRow", "FullEvaluation",
    "FullModel", "GenerationRow", "Growth", "GrowthPoint", "LayerRow", "LibraryRow",
    "ModelForward", "ModelRow", "Phase", "PlainForward", "Ratio", "Record", "RouterRow", "Startup",
    "Timing", "read_record",
]  # fmt: skip

SCHEMA: Final = "gks_eval.bench/1"
_FILE: Final = JsonFile(f"benchmark record ({SCHEMA})", ResultsError, "run the benchmark again")


class Bar(FrozenModel):
    """A goal and what was measured.

    Attributes:
        what: The quantity.
        wanted: The goal, in words.
        measured: The quantity's value.
        met: Whether it meets the goal.
    """

    what: str
    wanted: str
    measured: float
    met: bool


class Record(FrozenModel):
    """One run.

    Attributes:
        schema_: ``gks_eval.bench/1``.
        arguments: The command's arguments, parsed.
        date: Start of the run, ISO 8601, UTC.
        minutes: Duration of the run.
        seed: Seed of all random weights, inputs and tokens.
        versions: Versions of Python and packages.
        hardware: See `benchmarks.machine`.
        layer: The rows `layer`; rows that were not requested are empty, as below.
        router: The rows `router`.
        experts: The rows `experts`.
        model: The rows `model`.
        evaluation: The rows `evaluation`.
        startup: The row `startup`.
        growth: The rows `growth`.
        generation: The rows `generation`.
        library: The rows `library`.
        full: The rows `full`.
        bars: Goals that these rows have values for.
    """

    schema_: Literal["gks_eval.bench/1"] = Field(default=SCHEMA, alias="schema")
    arguments: dict[str, Any]
    date: str
    minutes: float
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int]
    layer: tuple[LayerRow, ...] = ()
    router: tuple[RouterRow, ...] = ()
    experts: tuple[ExpertsRow, ...] = ()
    model: tuple[ModelRow, ...] = ()
    evaluation: tuple[Evaluation, ...] = ()
    startup: Startup | None = None
    growth: Growth | None = None
    generation: tuple[GenerationRow, ...] = ()
    library: tuple[LibraryRow, ...] = ()
    full: tuple[FullModel, ...] = ()
    bars: tuple[Bar, ...] = ()

    def to_json(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_record(path: Path) -> Record:
    """Read what `Record.to_json` wrote.

    Raises:
        ResultsError: The file cannot be read, or has another schema.
    """
    return _FILE.read_as(path, Record)
