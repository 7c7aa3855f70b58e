"""The cells of a comparison's tables, independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gks_eval.evidence.comparison import Comparison, Difference, Row, Score, titled
from gks_eval.evidence.overlap import Overlap

__all__ = [
    "LINKED",
    "Note",
    "Table",
    "best_two",
    "difference_table",
    "flip_table",
    "flips_to_show",
    "interval",
    "number",
    "p_value",
    "score_table",
    "shift_tables",
]


Note: TypeAlias = str | Mapping[str, str]
"""A sentence, or sentences that explain columns, by heading."""

LINKED: Final = {
    "clusters": "clusters: of linked items, such as translations of one question.",
    "design effect": "design effect: the factor by which links change the variance.",
}
"""What the columns of linked items mean."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of plain texts.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells.
        marks: By (row, column): ``best`` or ``second``.
        notes: What is written below it.
        keys: Leading columns that name a row. A narrow terminal repeats them in every block of the
            other columns. 0 for tables whose texts may wrap.
        spare: Last columns that a narrow terminal leaves out; the first column then wraps. None for
            tables that leave nothing out.
        narrow: The same with one line per run, for terminals in which the columns do not fit.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    marks: dict[tuple[int, int], str]
    notes: Sequence[Note]
    keys: int = 1
    spare: int | None = None
    narrow: Table | None = None

    def sentences(self, left_out: Sequence[str] = ()) -> list[str]:
        """Return the notes as texts, without those on the columns that are left out."""
        return [
            note
            if isinstance(note, str)
            else " ".join(text for name, text in note.items() if name not in left_out)
            for note in self.notes
        ]

    def has_numbers(self, column: int) -> bool:
        """Return whether a column is aligned to the right; columns of names and words are not."""
        cells = [row[column] for row in self.rows if row[column] not in ("", "–")]
        numbers = [cell[0] in "0123456789+-<[" for cell in cells]
        # A name may begin with a digit; numbers may stand next to words such as nan.
        return column > 0 and (not cells or (all if column < self.keys else any)(numbers))


def number(value: float | None, binary: bool, signed: bool = False) -> str:
    """Return a metric as text: accuracies in percent with two decimals, others unscaled."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(100 * value, 2) + 0.0:{sign}.2f}" if binary else f"{value + 0.0:{sign}.4g}"


def best_two(row: Row) -> dict[str, str]:
    """Return which runs have the best and the second best value; ties share a place."""
    if row.higher_is_better is None or len(row.scores) < 2:
        return {}
    factor = 1.0 if row.higher_is_better else -1.0
    # Compared as shown, so that equal-looking numbers get the same mark.
    shown = {
        label: factor * float(number(score.value, row.binary))
        for label, score in row.scores.items()
    }
    places = sorted(set(shown.values()), reverse=True)[:2]
    if len(set(shown.values())) == 1:
        return {}
    names = ("best", "second")
    return {label: names[places.index(v)] for label, v in shown.items() if v in places}


def score_table(comparison: Comparison, overlaps: Sequence[Overlap] = ()) -> Table:
    """Return the runs' values with n and interval, one row per task or group.

    Args:
        comparison: The runs.
        overlaps: Overlap of libraries' training rows with the tasks, a column for each.
    """
    labels = [run.label for run in comparison.runs]
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    for position, row in enumerate(comparison.rows):
        places = best_two(row)
        cells = [row.title, _counts(row), _metric(row)]
        cells += [_overlap(row, overlap) for overlap in overlaps]
        for label in labels:
            if label in places:
                marks[position, len(cells)] = places[label]
            cells.append(_score(row.scores.get(label), row.binary))
        rows.append(cells)
    percent = f"{100 * comparison.confidence:g}%"
    notes = [f"In brackets the {percent} interval. Accuracies in percent."]
    notes[0] += "".join(
        f" Overlap, {one.library}: percent of items that share {one.n} words in a row with a "
        "training row / whose whole question occurs in one."
        for one in overlaps
    )
    columns = ["task", "n", "metric", *(f"overlap, {one.library}" for one in overlaps), *labels]
    return Table(
        "Scores", columns, rows, marks, notes, keys=2, narrow=_scores_by_task(comparison, percent)
    )


def _overlap(row: Row, overlap: Overlap) -> str:
    found = overlap.tasks.get(row.name) if row.kind == "task" else None
    return f"{100 * found.ngram:.1f} / {100 * found.question:.1f}" if found else "–"


def _scores_by_task(comparison: Comparison, percent: str) -> Table:
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    for row in comparison.rows:
        places = best_two(row)
        rows.append([f"{row.name}, {_metric(row)}", "", "", ""])
        for label, score in row.scores.items():
            if label in places:
                marks[len(rows), 1] = places[label]
            bounds = interval(score.low, score.high, row.binary)
            rows.append([f"  {label}", number(score.value, row.binary), bounds, str(score.n)])
    columns = ["task / run", "score", f"{percent} interval", "n"]
    return Table("Scores", columns, rows, marks, ["Accuracies in percent."], spare=0)


def difference_table(comparison: Comparison, further: Sequence[str] = ()) -> Table:
    """Return each candidate's differences from the baseline, one row per comparison.

    Args:
        comparison: What is shown.
        further: Notes without their full stops.
    """
    rows: list[list[str]] = []
    nested: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    nested_marks: dict[tuple[int, int], str] = {}
    remarks: dict[str, int] = {}
    several = len(comparison.runs) > 2
    equality = comparison.equivalence is not None
    links = any(d.clusters for row in comparison.rows for d in row.differences)
    for row in comparison.rows:
        if row.differences:
            nested.append([row.title, *[""] * (7 + 2 * (equality + links))])
        for d in row.differences:
            remark = f" [{remarks.setdefault(d.note, len(remarks) + 1)}]" if d.note else ""
            names = [row.title, f"{d.candidate}{remark}"] if several else [f"{row.title}{remark}"]
            if d.p_holm is not None and d.p_holm < round(1.0 - comparison.confidence, 12):
                mark = "best" if _better(row, d) else "second"
                marks[len(rows), len(names)] = nested_marks[len(nested), 1] = mark
            cells = _difference(d, row.binary)
            if equality:  # a narrow terminal leaves out the last columns, but not the answer
                cells.insert(4, d.verdict or "–")
                cells.append(p_value(d.p_equal_holm or d.p_equal))
            cells += _links(d) if links else []
            rows.append([*names, *cells])
            nested.append([f"  {d.candidate}{remark}", *cells])
    columns = ["change", f"{100 * comparison.confidence:g}% interval", "p", "n", "p Holm", "+/−"]
    columns.append("detectable")
    within = f"{100 * (comparison.equivalence or 0.0):g} points"
    if equality:
        columns.insert(4, "verdict")
        columns.append(f"p within {within}")
    columns += LINKED if links else ()
    methods = {d.method for row in comparison.rows for d in row.differences}
    mcnemar = "mid-p" if "mid-p" in methods else "exact"
    legend = {
        "p": f"p is two-sided: {mcnemar} McNemar, sign flips, or the item score for groups and for "
        "tasks with linked items.",
        "p Holm": "Holm over the tasks of a run, without groups.",
        "+/−": "+/−: items that only the run, or only the baseline, gets right.",
        "detectable": "detectable: the difference that is detected with 80% power at 5%, given the "
        "numbers of pairs and of changed items.",
        **(LINKED if links else {}),
    }
    if equality:
        legend["verdict"] = (
            f"verdict: equal within {within} if both one-sided tests against a change of {within} "
            "reject it (TOST, with Holm as for p); open if neither a difference nor equality is "
            "shown."
        )
    notes: list[Note] = [legend]
    notes += [f"[{mark}] {note}." for note, mark in remarks.items()]
    notes += [f"{note}." for note in further]
    title = f"Change from {comparison.baseline}"
    spare = 3 + equality + 2 * links
    if not several:
        return Table(title, ["task", *columns], rows, marks, notes, spare=spare)
    by_task = Table(title, ["task / run", *columns], nested, nested_marks, notes, spare=spare)
    return Table(title, ["task", "run", *columns], rows, marks, notes, keys=2, narrow=by_task)


def _difference(d: Difference, binary: bool) -> list[str]:
    return [
        number(d.difference, binary, signed=True),
        interval(d.low, d.high, binary, signed=True),
        p_value(d.p),
        str(d.n),
        p_value(d.p_holm),
        "–" if d.gains is None else f"{d.gains}/{d.losses}",
        number(d.detectable, binary),
    ]


def _links(d: Difference) -> list[str]:
    effect = "–" if d.design_effect is None else f"{d.design_effect:.2f}"
    return ["–", "–"] if d.clusters is None else [str(d.clusters), effect]


def shift_tables(comparison: Comparison) -> list[Table]:
    """Return how much more confident candidates are in gold choices; none without shifts."""
    if not comparison.shifts:
        return []
    percent = f"{100 * comparison.confidence:g}%"
    rows = [
        [
            shift.name,
            shift.candidate,
            number(shift.accuracy, True, signed=True),
            number(shift.margin, False, signed=True),
            interval(shift.margin_low, shift.margin_high, False, signed=True),
            number(shift.probability, True, signed=True),
            interval(shift.probability_low, shift.probability_high, True, signed=True),
            str(shift.n),
        ]
        for shift in comparison.shifts
    ]
    columns = ["task", "run", "accuracy", "margin", f"{percent} interval", "probability"]
    columns += [f"{percent} interval", "n"]
    notes = [
        "Changes. margin: log-likelihood of the gold choice less the best other, divided as the "
        "metric does, in nats. probability: of the gold choice among the choices, in points. A "
        "shift is no gain in accuracy: scaling all log-likelihoods shifts both. Not corrected over "
        "tasks."
    ]
    if any("[–]" in row for row in rows):
        notes[0] += " [–]: fewer than 10 items or clusters changed, or all changed alike."
    title = f"Confidence in the gold choice, change from {comparison.baseline}"
    return [Table(title, columns, rows, {}, notes, keys=2)]


def flip_table(comparison: Comparison, texts: dict[tuple[str, int], str], most: int) -> Table:
    """Return the changed items, at most `most` per task, run and direction."""
    rows: list[list[str]] = []
    shown: dict[tuple[str, str, str], int] = {}
    for flip in comparison.flips:
        kind = (titled(flip.task, flip.filter), flip.candidate, flip.change)
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= most:
            text = texts.get((flip.task, flip.doc_id), "")
            rows.append(
                [
                    titled(flip.task, flip.filter),
                    flip.candidate,
                    flip.change,
                    str(flip.doc_id),
                    text,
                ]
            )
    more = sum(max(0, count - most) for count in shown.values())
    notes = ["gain: only the run is right; loss: only the baseline is."]
    notes += [f"{more} more are left out here; the JSON lists all."] if more else []
    columns = ["task", "run", "change", "doc_id", "prompt ends"]
    return Table("Changed items", columns, rows, {}, notes, keys=0)


def flips_to_show(comparison: Comparison, most: int) -> Iterable[tuple[str, int]]:
    """Return (task, doc_id) of the items that `flip_table` would show."""
    shown: dict[tuple[str, str, str], int] = {}
    for flip in comparison.flips:
        kind = (titled(flip.task, flip.filter), flip.candidate, flip.change)
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= most:
            yield flip.task, flip.doc_id


def _metric(row: Row) -> str:
    metric = row.metric.removesuffix(",none")
    return f"{metric}, mean of {len(row.tasks)}" if row.kind == "group" else metric


def _counts(row: Row) -> str:
    counts = sorted({score.n for score in row.scores.values()})
    return "/".join(map(str, counts))


def _better(row: Row, difference: Difference) -> bool:
    return (difference.difference > 0) == (row.higher_is_better is not False)


def _score(score: Score | None, binary: bool) -> str:
    if score is None:
        return "–"
    return f"{number(score.value, binary)} {interval(score.low, score.high, binary)}"


def interval(low: float | None, high: float | None, binary: bool, signed: bool = False) -> str:
    """Return bounds as text, in brackets."""
    if low is None or high is None:
        return "[–]"
    return f"[{number(low, binary, signed)}, {number(high, binary, signed)}]"


def p_value(p: float | None) -> str:
    """Return a p-value as text."""
    if p is None:
        return "–"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
