"""A comparison over seeds as a table, with the sentence that it supports."""

from __future__ import annotations

from gks_eval.evidence.replicate_rows import FEW_SEEDS, MEAN, Replicates, Row
from gks_eval.evidence.tables.content import Table, interval, number, p_value

__all__ = ["replicates_table", "verdicts"]


def verdicts(found: Replicates) -> list[str]:
    """Return one sentence per method, about its first average or else its only task."""
    firsts: dict[str, Row] = {}
    for row in found.rows:
        firsts.setdefault(row.method, row)
    return [_verdict(found, row) for row in firsts.values()]


def _verdict(found: Replicates, row: Row) -> str:
    seeds = len(found.seeds)
    alpha = round(1.0 - found.confidence, 12)
    what = f"{row.method} less {found.baseline}, {row.name}, {seeds} seeds"
    change = number(row.change, row.binary, signed=True)
    bounds = interval(row.low, row.high, row.binary, signed=True)
    p = row.p if row.p_holm is None else row.p_holm
    shown = "a difference of the methods" if p < alpha else "no difference of the methods is shown"
    sentence = f"{what}: {change} {bounds}, p {p_value(p)}: {shown}."
    if seeds < FEW_SEEDS or p >= alpha:
        detectable = number(row.detectable, row.binary)
        sentence += (
            f" With {seeds} seeds a change of {detectable} is detected in 80% of cases."
            if row.detectable is not None
            else f" With {seeds} seeds no change is detected in 80% of cases."
        )
    if p >= alpha and row.p_items < alpha:
        sentence += (
            f" These libraries differ on such items (p {p_value(row.p_items)}), but other seeds "
            "may not."
        )
    return sentence


def replicates_table(found: Replicates) -> Table:
    """Return one row per method and task or average."""
    several = len({row.method for row in found.rows}) > 1
    percent = f"{100 * found.confidence:g}%"
    columns = ["method"] if several else []
    columns += ["task", "change", f"{percent} interval", "p", "p Holm", "seeds ±", "items ±"]
    columns += ["p seeds", "p items", "detectable", "n", "clusters"]
    marks: dict[tuple[int, int], str] = {}
    rows = []
    for place, row in enumerate(found.rows):
        if (row.p if row.p_holm is None else row.p_holm) < 1.0 - found.confidence:
            marks[place, 1 + several] = "best"
        rows.append([*([row.method] if several else []), *_cells(row)])
    method = "the method" if several else found.rows[0].method
    notes = [
        f"change: {method} less {found.baseline}, mean over the seeds {', '.join(found.seeds)}, on "
        "the same items; accuracies in points. p: seeds and items as samples, t with "
        f"{len(found.seeds) - 1} degrees of freedom. seeds ±, items ±: standard error of the "
        "change from each. p seeds: t over seeds with the items fixed. p items: item score with "
        "the seeds fixed. detectable: change that is detected in 80% of cases.",
        *(f"{note[0].upper()}{note[1:]}." for note in found.notes),
    ]
    if any(row.name == MEAN for row in found.rows):
        notes[0] += f" {MEAN}: tasks weigh the same."
    if lower := list(dict.fromkeys(r.name for r in found.rows if r.higher_is_better is False)):
        notes[0] += f" A lower value is better in {', '.join(lower)}."
    title = f"Change from {found.baseline} over {len(found.seeds)} seeds"
    return Table(title, columns, rows, marks, notes, keys=1 + several)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        number(row.change, row.binary, signed=True),
        interval(row.low, row.high, row.binary, signed=True),
        p_value(row.p),
        p_value(row.p_holm),
        number(row.stderr_seeds, row.binary),
        number(row.stderr_items, row.binary),
        p_value(row.p_seeds),
        p_value(row.p_items),
        number(row.detectable, row.binary),
        f"{row.n:,}",
        "–" if row.clusters is None else f"{row.clusters:,}",
    ]
