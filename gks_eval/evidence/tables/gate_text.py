"""A verdict as a table, and as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

from gks_eval.evidence.tables.content import Table, number
from gks_eval.evidence.tables.escape import plain
from gks_eval.evidence.verdict import Outcome, Verdict

__all__ = ["headline", "to_junit", "verdict_table"]

_WORDS = {"pass": "passed", "regression": "REGRESSION", "unjudged": "NOT JUDGED"}


def headline(verdict: Verdict) -> str:
    """Return the verdict in one line."""
    counts = dict.fromkeys(_WORDS.values(), 0)
    for outcome in verdict.outcomes:
        counts[_WORDS[outcome.status]] += 1
    counted = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count)
    return f"gate: {_WORDS[verdict.status]} ({counted or 'nothing checked'})"


def verdict_table(verdict: Verdict) -> Table:
    """Return one row per check, failures first."""
    order = {"regression": 0, "unjudged": 1, "pass": 2}
    outcomes = sorted(verdict.outcomes, key=lambda outcome: order[outcome.status])
    rows = [_cells(outcome) for outcome in outcomes]
    marks = {(i, 1): "best" for i, o in enumerate(outcomes) if o.status != "pass"}
    adjusted = "Holm over all checks" if verdict.policy.correction == "holm" else "unadjusted"
    notes = [
        f"p: one-sided, of being worse by more than tolerated; {adjusted}. +/−: items that got "
        "better and worse. catches: the drop that is detected with 80% power.",
        *(f"{o.check.name}: {'; '.join(o.reasons)}." for o in outcomes if o.reasons),
        *(f"{note}." for note in verdict.notes),
    ]
    columns = ["check", "verdict", "values", "change", "tolerated", "p", "n", "+/−", "catches"]
    return Table(headline(verdict), columns, rows, marks, notes, spare=2)


def _cells(outcome: Outcome) -> list[str]:
    check = outcome.check
    p = outcome.p_adjusted
    return [
        check.name,
        _WORDS[outcome.status],
        f"{number(check.baseline, check.binary)} → {number(check.candidate, check.binary)}",
        number(check.change, check.binary, signed=True),
        number(check.limits.max_drop, check.binary),
        "–" if p is None else f"{p:.4f}",
        str(check.n),
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
        cells = zip(verdict_table(verdict).columns, _cells(outcome), strict=True)
        facts.text = plain(", ".join(f"{column} {cell}" for column, cell in cells if cell))
    if not outcomes:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "gate", "name": "gate"})
        ElementTree.SubElement(case, "error", {"message": plain("; ".join(verdict.notes))})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
