"""Scores as a LaTeX table in the paper's layout: one row per run, one column per task."""

from __future__ import annotations

from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.tables.content import best_two, interval, number
from gks_eval.evidence.tables.escape import latex
from gks_eval.evidence.tables.leaderboard import by_family, ratio

__all__ = ["to_latex"]

_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}


def to_latex(comparison: Comparison) -> str:
    """Return a booktabs table, best in bold, second best underlined, n in the last line."""
    rows = comparison.rows
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(rows)}}}",
        r"\toprule",
        _line(["", *(latex(row.title) for row in rows)]),
        r"\midrule",
    ]
    places = [best_two(row) for row in rows]
    for run in comparison.runs:
        cells = [latex(run.label)]
        for row, place in zip(rows, places, strict=True):
            score = row.scores.get(run.label)
            text = latex(number(score.value if score else None, row.binary))
            cells.append(_MARKS[place[run.label]] % text if run.label in place else text)
        lines.append(_line(cells))
    counts = [sorted({score.n for score in row.scores.values()}) for row in rows]
    lines += [r"\midrule", _line(["$n$", *("/".join(map(str, found)) for found in counts)])]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*lines, *_leaderboard(comparison)])


def _leaderboard(comparison: Comparison) -> list[str]:
    """Return the lines of a second table, with one block of rows per family."""
    if comparison.leaderboard is None:
        return []
    interval_column = f"{100 * comparison.confidence:g}% interval"
    lines = [
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        _line(["", "rank", "mean", latex(interval_column), "time", "needs"]),
    ]
    for family, places in by_family(comparison.leaderboard):
        lines += [r"\midrule", _line([rf"\multicolumn{{6}}{{l}}{{{latex(family)}}}"])]
        for place in places:
            score = place.score
            mean = latex(number(score.value, True))
            texts = [interval(score.low, score.high, True), ratio(place), place.needs or "–"]
            mean = _MARKS["best"] % mean if place.rank == 1 else mean
            lines.append(_line([latex(place.run), str(place.rank), mean, *map(latex, texts)]))
    return [*lines, r"\bottomrule", r"\end{tabular}", ""]


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
