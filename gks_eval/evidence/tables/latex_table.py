"""The leaderboard as a LaTeX table in the paper's layout: one row per run, one column per task."""

from __future__ import annotations

from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.tables.content import best_two, number
from gks_eval.evidence.tables.escape import latex

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
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
