"""The content of a comparison, from which every table and file is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gks_eval.util.yaml import FrozenModel

__all__ = [
    "SCHEMA",
    "Comparison",
    "Difference",
    "Flip",
    "Leaderboard",
    "Place",
    "Row",
    "RunInfo",
    "Score",
    "Shift",
    "titled",
]

SCHEMA = "gks_eval.compare/1"


def titled(name: str, filter_name: str) -> str:
    """Return the name of a task or group, with filter or metric if it is judged by several."""
    return f"{name} ({filter_name})" if filter_name else name


class RunInfo(FrozenModel):
    """One run: its label and where it comes from."""

    label: str
    folder: str
    files: list[str]
    model: str
    model_args: str
    info: dict[str, str]


class Score(FrozenModel):
    """One run's value of one row.

    Attributes:
        value: The metric, as lm-eval's fraction.
        n: Number of items.
        low: Lower bound of the interval, or None if there is no interval.
        high: Upper bound.
        method: How the interval was made: ``wilson``, ``t``, ``stderr`` or ``none``.
    """

    value: float
    n: int
    low: float | None
    high: float | None
    method: Literal["wilson", "t", "stderr", "none"]


class Difference(FrozenModel):
    """The difference of one candidate from the baseline, on one row.

    Attributes:
        candidate: The candidate's label.
        difference: Candidate minus baseline, on the compared items.
        low: Lower bound of its interval; it excludes 0 exactly if p < 1 - confidence.
        high: Upper bound.
        p: Two-sided p-value of "no difference".
        p_holm: p after Holm's correction over this candidate's tasks; None for groups.
        n: Pairs, or the smaller run's items where unpaired.
        method: ``mcnemar`` (exact), ``mid-p``, ``sign flips``, ``item score``, ``unpaired``, or
            ``none`` if there is no test.
        gains: Items that only the candidate gets right.
        losses: Items that only the baseline gets right.
        unpaired_baseline: Items of the baseline without a partner.
        unpaired_candidate: Items of the candidate without a partner.
        detectable: Smallest difference that is detected with 80% power, two-sided at 5%.
        p_equal: p-value of "not equal": both one-sided tests against a change of the margin
            reject it (TOST). None without a margin, and for metrics that are not accuracies.
        p_equal_holm: The same after Holm's correction over this candidate's tasks.
        verdict: ``equal`` within the margin, ``differs``, ``differs within`` the margin, or
            ``open``; empty without a margin.
        clusters: Number of clusters of linked items; None if no items are linked.
        design_effect: Factor by which the links change the variance.
        note: A remark for the reader.
    """

    candidate: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None
    n: int
    method: Literal["mcnemar", "mid-p", "sign flips", "item score", "unpaired", "none"]
    gains: int | None = None
    losses: int | None = None
    unpaired_baseline: int = 0
    unpaired_candidate: int = 0
    detectable: float | None = None
    p_equal: float | None = None
    p_equal_holm: float | None = None
    verdict: Literal["", "equal", "differs", "differs within", "open"] = ""
    clusters: int | None = None
    design_effect: float | None = None
    note: str = ""


class Row(FrozenModel):
    """One task or group.

    Attributes:
        kind: Task or group.
        name: Its name.
        metric: ``metric,filter``.
        filter: The filter, the metric or both, if the task has several rows.
        binary: Whether the metric is an accuracy, shown in percent.
        higher_is_better: None if unknown; then no value is marked as best.
        tasks: A group's tasks.
        weighting: How a group averages its tasks.
        scores: By run label; runs without the row are left out.
        differences: One per candidate that has the row.
    """

    kind: Literal["task", "group"]
    name: str
    metric: str
    filter: str = ""
    binary: bool
    higher_is_better: bool | None
    tasks: list[str] = Field(default_factory=list)
    weighting: Literal["", "by size", "plain"] = ""
    scores: dict[str, Score]
    differences: list[Difference]

    @property
    def title(self) -> str:
        """Return the name, with the filter if the task has one row per filter."""
        return titled(self.name, self.filter)


class Flip(FrozenModel):
    """An item that one run gets right and the other wrong."""

    task: str
    filter: str = ""
    candidate: str
    change: Literal["gain", "loss"]
    doc_id: int
    doc_hash: str
    occurrence: int


class Shift(FrozenModel):
    """How much more confident a candidate is in the gold choice than the baseline, on one task.

    Attributes:
        name: The row's title.
        metric: ``metric,filter``; it says what the log-likelihoods are divided by.
        candidate: The candidate's label.
        n: Pairs.
        accuracy: Change of the metric.
        margin: Change of the mean margin, in nats.
        margin_low: Lower bound of its interval.
        margin_high: Upper bound.
        margin_p: Two-sided p-value of "no shift", not corrected.
        probability: Change of the mean probability of the gold choice among the choices.
        probability_low: Lower bound of its interval.
        probability_high: Upper bound.
        probability_p: Two-sided p-value, not corrected.
    """

    name: str
    metric: str
    candidate: str
    n: int
    accuracy: float
    margin: float
    margin_low: float | None
    margin_high: float | None
    margin_p: float
    probability: float
    probability_low: float | None
    probability_high: float | None
    probability_p: float


class Place(FrozenModel):
    """One run on a leaderboard.

    Attributes:
        run: Its label.
        rank: 1 plus the number of runs that are significantly better.
        family: The kind of its setting, or ``other runs`` if the results do not record it.
        needs: What must be there beyond the adapters; empty if the results do not record it.
        time_ratio: Its time per token relative to ``base`` in the same grid; None if not measured.
        score: Its mean over the tasks.
    """

    run: str
    rank: int
    family: str
    needs: str
    time_ratio: float | None
    score: Score


class Leaderboard(FrozenModel):
    """All runs by rank.

    Attributes:
        tasks: The tasks of the mean.
        weighting: How the mean weighs them.
        places: By rank, and by mean among equal ranks.
        notes: What is left out.
    """

    tasks: list[str]
    weighting: Literal["by size", "plain"]
    places: list[Place]
    notes: list[str]


class Comparison(FrozenModel):
    """The result of `gks-eval compare`."""

    schema_: str = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    baseline: str
    confidence: float
    draws: int
    seed: int
    forced: bool
    equivalence: float | None = None
    runs: list[RunInfo]
    rows: list[Row]
    flips: list[Flip]
    notes: list[str]
    leaderboard: Leaderboard | None = None
    shifts: list[Shift] = Field(default_factory=list)

    def __repr__(self) -> str:
        runs = ", ".join(run.label for run in self.runs)
        rows = ", ".join(row.name for row in self.rows)
        return f"Comparison(baseline {self.baseline!r}, runs: {runs}; rows: {rows})"

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"
