"""A verdict as a table, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from gks_eval.evidence.tables.content import LINKED, Note, Table, number
from gks_eval.evidence.tables.escape import plain
from gks_eval.evidence.verdict import Outcome, Verdict

__all__ = ["headline", "to_junit", "verdict_table"]

_COLUMNS = ("check", "verdict", "values", "change", "p", "n", "tolerated", "+/−", "catches")
_WORDS = {"pass": "passed", "regression": "REGRESSION", "unjudged": "NOT JUDGED"}


def headline(verdict: Verdict) -> str:
    """Return the verdict in one line, with what a pass may have missed."""
    counts = dict.fromkeys(_WORDS.values(), 0)
    for outcome in verdict.outcomes:
        counts[_WORDS[outcome.status]] += 1
    counted = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count)
    return f"gate: {_WORDS[verdict.status]} ({counted or 'nothing checked'}){_missed(verdict)}"


def _missed(verdict: Verdict) -> str:
    """Return which drops checks may have missed that passed because no regression was shown."""
    if verdict.status != "pass" or verdict.policy.require == "shown":
        return ""
    checks = [outcome.check for outcome in verdict.outcomes if not outcome.shown]
    weak = [c for c in checks if c.detectable is None or c.detectable > (c.limits.max_drop or 0.0)]
    if not weak:
        return ""
    blind = any(check.detectable is None for check in weak)
    worst = max(weak, key=lambda check: check.detectable or 0.0)
    same = len({check.binary for check in weak}) == 1
    size = f"{number(worst.detectable, worst.binary)}{' points' if worst.binary else ''}"
    beyond = " beyond the tolerance" if any(check.limits.max_drop for check in weak) else ""
    drop = "any drop" if blind else f"a drop of {size}{beyond}" if same else f"drops{beyond}"
    return f", but {len(weak)} of {len(verdict.outcomes)} may miss {drop}"


def verdict_table(verdict: Verdict, plan: bool = False) -> Table:
    """Return one row per check, failures first.

    Args:
        verdict: The verdict.
        plan: Whether to show how many items would be needed.
    """
    order = {"regression": 0, "unjudged": 1, "pass": 2}
    outcomes = sorted(verdict.outcomes, key=lambda outcome: order[outcome.status])
    shown = verdict.policy.require == "shown"
    links = any(outcome.check.clusters for outcome in outcomes)
    rows, columns = [_cells(outcome) for outcome in outcomes], [*_COLUMNS]
    # A narrow terminal leaves out the last columns, but not what was asked for.
    for wanted, after, title, cell in (
        (plan, "n", "n needed", _needed),
        (shown, "p", "p shown", lambda outcome: _p(outcome.check.p_shown)),
    ):
        if wanted:
            place = columns.index(after) + 1
            columns.insert(place, title)
            for row, outcome in zip(rows, outcomes, strict=True):
                row.insert(place, cell(outcome))
    if links:
        columns += LINKED
        rows = [[*row, *_linked(o)] for row, o in zip(rows, outcomes, strict=True)]
    marks = {(i, 1): "best" for i, o in enumerate(outcomes) if o.status != "pass"}
    adjusted = "Holm over all checks" if verdict.policy.correction == "holm" else "unadjusted"
    legend = {
        "p": f"p: one-sided, of being worse by more than tolerated; {adjusted}.",
        "+/−": "+/−: items that got better and worse.",
        "catches": "catches: the drop that is detected with 80% power.",
        "p shown": "p shown: one-sided, of not being worse by the tolerated drop; each check must "
        "show it.",
        **LINKED,
        "n needed": "n needed: items that show an unchanged candidate not to be worse by the "
        "tolerated drop in 80% of cases.",
    }
    notes: list[Note] = [
        {name: legend[name] for name in legend if name in columns},
        *_reasons(outcomes),
        *(f"{note}." for note in verdict.notes),
    ]
    return Table(headline(verdict), columns, rows, marks, notes, spare=3 + 2 * links)


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a note for each reason, with all checks that have it."""
    checks: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.reasons:
            checks.setdefault("; ".join(outcome.reasons), []).append(outcome.check.name)
    return [f"{', '.join(names)}: {reason}." for reason, names in checks.items()]


def _p(p: float | None) -> str:
    return "–" if p is None else f"{p:.4f}"


def _linked(outcome: Outcome) -> list[str]:
    check = outcome.check
    effect = "–" if check.design_effect is None else f"{check.design_effect:.2f}"
    return ["–", "–"] if check.clusters is None else [str(check.clusters), effect]


def _needed(outcome: Outcome) -> str:
    return "–" if outcome.check.needed is None else f"{outcome.check.needed:,}"


def _cells(outcome: Outcome) -> list[str]:
    check = outcome.check
    return [
        check.name,
        _WORDS[outcome.status],
        f"{number(check.baseline, check.binary)} → {number(check.candidate, check.binary)}",
        number(check.change, check.binary, signed=True),
        _p(outcome.p_adjusted),
        str(check.n),
        number(check.limits.max_drop, check.binary),
        "–" if check.gains is None else f"{check.gains}/{check.losses}",
        number(check.detectable, check.binary),
    ]


def to_junit(verdict: Verdict) -> str:
    """Return JUnit XML: a regression is a failure, an unjudged check is an error."""
    outcomes = verdict.outcomes
    counts = {
        "tests": max(1, len(outcomes)),
        "failures": sum(outcome.status == "regression" for outcome in outcomes),
        "errors": sum(o.status == "unjudged" for o in outcomes) + (not outcomes),
    }
    attributes = {"name": "gks-eval gate", **{key: str(count) for key, count in counts.items()}}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for outcome in outcomes:
        check = outcome.check
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"gate.{check.kind}", "name": plain(check.name)}
        )
        message = plain("; ".join(outcome.reasons))
        if outcome.status == "regression":
            ElementTree.SubElement(case, "failure", {"message": message})
        elif outcome.status == "unjudged":
            ElementTree.SubElement(case, "error", {"message": message})
        facts = ElementTree.SubElement(case, "system-out")
        numbers = dict(zip(_COLUMNS, _cells(outcome), strict=True))
        if verdict.policy.require == "shown":
            numbers["p shown"] = _p(check.p_shown)
        if check.clusters is not None:
            numbers |= zip(LINKED, _linked(outcome), strict=True)
        facts.text = plain(", ".join(f"{column} {cell}" for column, cell in numbers.items()))
    if not outcomes:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "gate", "name": "gate"})
        ElementTree.SubElement(case, "error", {"message": plain("; ".join(verdict.notes))})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
