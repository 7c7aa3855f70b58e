"""The looks of a gate that stops early, as tables."""

from __future__ import annotations

from collections import Counter

from gks_eval.evidence.looks_file import CheckAtLook, LooksFile
from gks_eval.evidence.tables.content import Table

__all__ = ["looks_tables"]

_WORDS = {"open": "open", "shown": "passed", "regression": "REGRESSION"}


def looks_tables(file: LooksFile) -> list[Table]:
    """Return one row per look, and one row per check as it stands after its last look."""
    planned = sum(file.items.values())
    rows = []
    for look in file.looks:
        states = Counter(check.state for check in look.checks)
        read = sum(look.items.values())
        rows.append(
            [f"{100 * look.share:.0f}%", f"{read:,} of {planned:,}", f"{look.seconds:.1f}"]
            + [str(states[state]) for state in ("open", "shown", "regression")]
        )
    columns = ["look", "items read", "seconds", "open", "passed", "regressions"]
    verdict = file.verdict.status if file.verdict else "none yet"
    title = f"{file.setting}: verdict {verdict}"
    notes = ["look: share of the items. seconds: since the look before. Columns 4 to 6: checks."]
    if not file.looks:
        return []
    last = file.looks[-1].checks
    each = [_decided(file, place) for place in range(len(last))]
    bounds = [
        "z: score of a change of minus the tolerated drop, at the look that decided. A regression: "
        "z at or below the lower bound. A pass: z at or above the upper bound; without one, by the "
        "Clopper-Pearson bound."
    ]
    heads = ["check", "state", "look", "n", "changed", "z", "lower", "upper"]
    marks = {(place, 1): "best" for place, row in enumerate(each) if row[1] == "REGRESSION"}
    return [
        Table(title, columns, rows, {}, notes),
        Table(f"{file.setting}: checks", heads, each, marks, bounds),
    ]


def _decided(file: LooksFile, place: int) -> list[str]:
    """Return a check at the look that decided it, or at the last one."""
    final = file.looks[-1].checks[place].state
    look = next(look for look in file.looks if look.checks[place].state == final)
    if final == "open":
        look = file.looks[-1]
    check: CheckAtLook = look.checks[place]
    return [
        check.name,
        _WORDS[final],
        f"{100 * look.share:.0f}%",
        f"{check.n:,}",
        "–" if check.changed is None else str(check.changed),
        *("–" if x is None else f"{x:.2f}" for x in (check.z, check.lower, check.upper)),
    ]
