"""What `gks-eval controls` asks and finds, as ``controls.json`` keeps it.

The question is written before anything runs, what was found after. Another question in the same
folder is refused, so that nobody chooses the controls after seeing the scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonFile
from gks_eval.util.yaml import FrozenModel

__all__ = [
    "CONTROLS_FILE",
    "Claim",
    "Contrast",
    "ControlsFile",
    "Finding",
    "Question",
    "QuestionControl",
    "Role",
    "TaskUsed",
    "check_question",
    "read_controls",
]

CONTROLS_FILE: Final = "controls.json"
_FILE: Final = JsonFile("file of controls", ResultsError, "delete it and run the command again")

Role = Literal["subtraction", "amount", "library", "routing"]
State = Literal["beaten", "better", "as well", "undecided"]


class QuestionControl(FrozenModel):
    """One control.

    Attributes:
        name: Such as ``general=random``.
        role: What a tie with the treatment speaks against. ``amount`` stands for other multiples of
            what is subtracted: they inform, and no claim depends on them.
        over: ``draws`` of one control are averaged per item; of ``experts`` the best is chosen on
            the other half of the items.
        settings: In the grid's grammar.
    """

    name: str
    role: Role
    over: Literal["draws", "experts"]
    settings: Annotated[tuple[str, ...], Field(min_length=1)]


class Question(FrozenModel):
    """What is compared, and when the answer counts.

    Attributes:
        treatment: A setting in the grid's grammar.
        library: Its library's name.
        library_hash: SHA-256 of the library's content, with the prepared vectors of the treatment's
            router.
        tasks: Tasks and groups as given.
        seeds: Draws of each random control, with seeds 0, 1, ...
        evaluation: Limit, items, shots and chat template as given.
        alpha: Level of all tests together, by Holm's correction over the controls.
        margin: Smallest difference of the mean score that matters: 0.02 is two points.
        controls: In the order of the tables.
        left_out: Controls that the library cannot run, with the reason.
    """

    treatment: str
    library: str
    library_hash: str
    tasks: tuple[str, ...]
    seeds: Annotated[int, Field(ge=1)]
    evaluation: dict[str, str]
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    margin: Annotated[float, Field(gt=0.0, lt=1.0)]
    controls: tuple[QuestionControl, ...]
    left_out: tuple[str, ...]


class Contrast(FrozenModel):
    """The treatment less one control, mean over the tasks.

    Attributes:
        name: The control's.
        role: The control's.
        draws: Settings that were averaged, or experts among which was chosen.
        score: The control's mean score.
        difference: Treatment less control.
        low: Lower bound of the interval at 1 - alpha; None where none can be had.
        high: Upper bound.
        p: Two-sided p-value of "no difference"; older files have None where there was no test.
        p_holm: The same after Holm over all controls.
        n: Items, over all tasks.
        gains: Items on which the treatment scores higher.
        losses: Items on which the control scores higher.
        needed: Items, in the same shares per task, that show a difference of the margin in 80% of
            cases at Holm's first step; None where no item differs.
        state: ``beaten`` where the treatment is better after Holm, ``better`` where the control
            is, ``as well`` where the interval ends below the margin, else ``undecided``.
        note: In older files, why there was no test.
    """

    name: str
    role: Role
    draws: int
    score: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int
    gains: int
    losses: int
    needed: int | None
    state: State
    note: str = ""


class Claim(FrozenModel):
    """The answer for all controls of one role.

    Attributes:
        role: Theirs.
        holds: True where the treatment beats all of them, False where one does as well or better,
            None where too few items say.
        sentence: The same in words.
    """

    role: Role
    holds: bool | None
    sentence: str


class TaskUsed(FrozenModel):
    """One task of the mean: its metric, its items, its weight."""

    name: str
    metric: str
    n: int
    weight: float


class Finding(FrozenModel):
    """What was found.

    Attributes:
        score: The treatment's mean score.
        tasks: Of the mean.
        contrasts: One per control.
        claims: One per role that has controls, ``amount`` left out.
        notes: What the reader must know, as sentences without a full stop.
    """

    score: float
    tasks: tuple[TaskUsed, ...]
    contrasts: tuple[Contrast, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]


class ControlsFile(FrozenModel):
    """``controls.json``, ``gks_eval.controls/1``; without a finding until all settings have run."""

    schema_: Literal["gks_eval.controls/1"] = Field(
        default="gks_eval.controls/1", alias="schema", serialization_alias="schema"
    )
    question: Question
    finding: Finding | None = None

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_controls(folder: Path) -> ControlsFile | None:
    """Read a folder's ``controls.json``; None where there is none.

    Raises:
        ResultsError: It is broken or of another schema.
    """
    path = folder / CONTROLS_FILE
    return _FILE.read_as(path, ControlsFile) if path.exists() else None


def check_question(folder: Path, question: Question) -> Finding | None:
    """Make sure that a folder has no other question; return what was found for this one before.

    Raises:
        ResultsError: The folder's question is another, or cannot be read.
    """
    kept = read_controls(folder)
    if kept is None:
        return None
    # A library may be named in several ways; its hash says what it is.
    before, now = (
        one.model_dump(exclude={"library", "left_out"}) for one in (kept.question, question)
    )
    if before != now:
        changed = ", ".join(name.replace("_", " ") for name in now if before[name] != now[name])
        raise ResultsError(
            f"{folder / CONTROLS_FILE} holds another question (other {changed}), which is fixed "
            "before the run; name another --output."
        )
    return kept.finding
