"""The gate's verdict, a pure function of the checks; it gives exit status and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from gks_eval.evidence.looks import Reading
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.stats.holm import holm
from gks_eval.util.yaml import FrozenModel

__all__ = [
    "EXIT_CODES",
    "SCHEMA",
    "Check",
    "Outcome",
    "Verdict",
    "conclude",
    "judge",
    "missed_floor",
    "unjudgeable",
    "worse_by",
]

SCHEMA = "gks_eval.gate/1"
Status = Literal["pass", "regression", "unjudged"]
EXIT_CODES: dict[Status, int] = {"pass": 0, "regression": 1, "unjudged": 2}


class Check(FrozenModel):
    """The measurement of one task or group, before it is judged.

    Attributes:
        kind: Task or group.
        name: Its name.
        metric: ``metric,filter``; empty if there is none.
        limits: Its limits, with defaults filled in.
        baseline: The baseline's value.
        candidate: The candidate's value.
        change: Candidate minus baseline on the pairs, with the sign that makes negative worse.
        n: Pairs.
        gains: Items that got better.
        losses: Items that got worse.
        p: One-sided p-value of "worse by more than ``limits.max_drop``".
        p_shown: One-sided p-value of "not worse by ``limits.max_drop``".
        needed: Items that show it for an unchanged candidate in 80% of cases; None if none do.
        detectable: Drop beyond the tolerance that is detected with 80% power.
        clusters: Number of clusters of linked items; None if no items are linked.
        design_effect: Factor by which the links change the variance.
        reading: What a look of a gate that stops early needs; None for other gates.
        problem: Why it cannot be judged; empty if it can.
    """

    kind: Literal["task", "group"]
    name: str
    metric: str = ""
    limits: Limits
    baseline: float | None = None
    candidate: float | None = None
    higher_is_better: bool | None = None
    binary: bool = False
    change: float | None = None
    n: int = 0
    gains: int | None = None
    losses: int | None = None
    p: float | None = None
    p_shown: float | None = None
    needed: int | None = None
    detectable: float | None = None
    clusters: int | None = None
    design_effect: float | None = None
    reading: Reading | None = None
    problem: str = ""


class Outcome(FrozenModel):
    """One check judged.

    Attributes:
        check: The check.
        status: What it is.
        p_adjusted: Its p-value after correction; None without one, as in a gate that stops early.
        reasons: Why it does not pass.
        shown: Whether a gate that stops early showed that it is within the tolerance.
    """

    check: Check
    status: Status
    p_adjusted: float | None
    reasons: list[str]
    shown: bool = False


class Verdict(FrozenModel):
    """The gate's verdict.

    Attributes:
        status: ``regression`` if any check is one; ``unjudged`` if any check is, or there are no
            checks; else ``pass``.
        exit_code: 0, 1 or 2.
        outcomes: Each check's.
        notes: What was not judged.
    """

    schema_: str = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    status: Status
    exit_code: int
    baseline: str
    candidate: str
    policy: GatePolicy
    outcomes: list[Outcome]
    notes: list[str]

    def __repr__(self) -> str:
        checks = ", ".join(f"{one.check.name} {one.status}" for one in self.outcomes)
        return f"Verdict({self.status!r}, {self.candidate!r} after {self.baseline!r}: {checks})"

    @model_validator(mode="after")
    def _code_of_status(self) -> Verdict:
        if self.exit_code != EXIT_CODES[self.status]:
            raise ValueError(f"exit_code of {self.status} is {EXIT_CODES[self.status]}")
        return self

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def judge(
    checks: Sequence[Check],
    policy: GatePolicy,
    baseline: str = "",
    candidate: str = "",
    notes: Sequence[str] = (),
) -> Verdict:
    """Judge checks by a policy.

    A check is a regression if its (Holm-adjusted) p-value is at most its alpha, or if the candidate
    misses its floor. It is unjudged if it has a problem or too few pairs, and under ``require:
    shown`` if `Check.p_shown` is above its alpha. Otherwise it passes. As all checks must pass, the
    p-values of what is shown need no correction (an intersection-union test).
    """
    adjusted: dict[int, float] = {
        i: c.p for i, c in enumerate(checks) if c.p is not None and not _problem(c)
    }
    if policy.correction == "holm":
        adjusted = dict(zip(adjusted, holm(list(adjusted.values())), strict=True))
    shown = policy.require == "shown"
    outcomes = [_outcome(check, adjusted.get(i), shown) for i, check in enumerate(checks)]
    return conclude(outcomes, policy, baseline, candidate, notes)


def conclude(
    outcomes: Sequence[Outcome],
    policy: GatePolicy,
    baseline: str,
    candidate: str,
    notes: Sequence[str],
) -> Verdict:
    """Return the verdict that follows from the checks' outcomes."""
    statuses = {outcome.status for outcome in outcomes}
    status: Status = "pass"
    if "regression" in statuses:
        status = "regression"
    elif "unjudged" in statuses or not outcomes:
        status = "unjudged"
    return Verdict(
        status=status,
        exit_code=EXIT_CODES[status],
        baseline=baseline,
        candidate=candidate,
        policy=policy,
        outcomes=list(outcomes),
        notes=list(notes) if outcomes else [*notes, "there was nothing to check"],
    )


def unjudgeable(reason: str, policy: GatePolicy, baseline: str, candidate: str) -> Verdict:
    """Return the verdict if no check could be made."""
    return judge([], policy, baseline, candidate, [reason])


def _problem(check: Check) -> str:
    needed = check.limits.min_pairs or 1
    if check.problem:
        return check.problem
    if check.p is None:
        return "no test could be made"
    if check.n < needed:
        return f"only {check.n} of the {needed} pairs needed"
    return ""


def _outcome(check: Check, p_adjusted: float | None, must_show: bool) -> Outcome:
    alpha = check.limits.alpha or 0.05
    reasons = missed_floor(check)
    if p_adjusted is not None and p_adjusted <= alpha:
        reasons.append(f"{worse_by(check)} (p = {p_adjusted:.2g}, n = {check.n})")
    if reasons:
        return Outcome(check=check, status="regression", p_adjusted=p_adjusted, reasons=reasons)
    if problem := _problem(check):
        return Outcome(check=check, status="unjudged", p_adjusted=None, reasons=[problem])
    if must_show and (problem := _not_shown(check, alpha)):
        return Outcome(check=check, status="unjudged", p_adjusted=p_adjusted, reasons=[problem])
    return Outcome(check=check, status="pass", p_adjusted=p_adjusted, reasons=[])


def worse_by(check: Check) -> str:
    """Return by how much a candidate is worse, in words."""
    tolerated = check.limits.max_drop
    beyond = f" beyond the tolerated {tolerated:.4g}" if tolerated else ""
    return f"worse by {-(check.change or 0.0):.4g}{beyond}"


def missed_floor(check: Check) -> list[str]:
    """Return that the candidate misses its floor, if it does."""
    floor = check.limits.floor
    if floor is None or check.candidate is None or not _misses(check, check.candidate, floor):
        return []
    return [f"{check.candidate:.4g} misses the floor of {floor:.4g}"]


def _not_shown(check: Check, alpha: float) -> str:
    tolerated = check.limits.max_drop
    if not tolerated:
        return "nothing can be shown at a tolerance of 0; set max_drop"
    if check.p_shown is not None and check.p_shown <= alpha:
        return ""
    more = check.needed is not None and check.needed > check.n
    needed = f"; about {check.needed:,} items would be needed" if more else ""
    return (
        f"neither a drop beyond {tolerated:.4g} nor its absence is shown "
        f"(p = {check.p_shown or 0.0:.2g}, n = {check.n:,}){needed}"
    )


def _misses(check: Check, value: float, floor: float) -> bool:
    return value > floor if check.higher_is_better is False else value < floor
