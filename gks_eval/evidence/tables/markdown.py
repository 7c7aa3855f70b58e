"""Tables in Markdown."""

from __future__ import annotations

from gks_eval.evidence.tables.content import Table
from gks_eval.evidence.tables.escape import markdown

__all__ = ["to_markdown"]

_MARKS = {"best": "**{}**", "second": "<u>{}</u>"}


def to_markdown(tables: list[Table]) -> str:
    """Return tables as GitHub's Markdown, best values bold and second best underlined."""
    parts = []
    for table in tables:
        lines = [f"### {markdown(table.title)}", ""]
        lines.append(_line([markdown(column) for column in table.columns]))
        every = range(len(table.columns))
        lines.append(_line(["--:" if table.has_numbers(index) else ":--" for index in every]))
        for position, row in enumerate(table.rows):
            cells = []
            for index, cell in enumerate(row):
                mark = table.marks.get((position, index))
                cells.append(_MARKS[mark].format(markdown(cell)) if mark else markdown(cell))
            lines.append(_line(cells))
        lines += ["", *(markdown(note) + "\n" for note in table.sentences())]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
