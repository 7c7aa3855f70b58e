"""Values with intervals on one axis, in percent of its width: the page draws them at any width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.paper import PaperCell

__all__ = ["Forest", "Lane", "Mark", "difference_forest", "paper_forest", "ticks"]

SHAPES = 8  # the numbers of markers and colours in page.css and macros.html.j2


@dataclass(frozen=True, slots=True)
class Mark:
    """One value.

    Attributes:
        series: Which label it belongs to.
        at: The value.
        low: Where its interval begins; None without one.
        high: Where it ends.
        hollow: Whether it is the paper's value.
    """

    series: int
    at: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the plot: a name and its values."""

    name: str
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Forest:
    """A plot.

    Attributes:
        labels: The series.
        lanes: The rows; positions are in percent of the axis.
        ticks: Position and text of each tick.
        zero: Position of the line at 0, or None.
        axis: What the axis shows.
    """

    labels: list[str]
    lanes: list[Lane]
    ticks: list[tuple[float, str]]
    zero: float | None
    axis: str

    @staticmethod
    def colour(series: int) -> int:
        """Return the number of a series' colour, from 1."""
        return series % SHAPES + 1

    @staticmethod
    def shape(series: int) -> int:
        """Return the number of its marker, from 1; no two of 64 series share both."""
        return (series + series // SHAPES) % SHAPES + 1


def difference_forest(part: Comparison, whole: Comparison) -> Forest | None:
    """Return every candidate's differences from the baseline; None if there are none.

    Args:
        part: The rows to draw.
        whole: All rows: its values set the axis, so that plots of several parts can be compared.
    """
    compared = {d.candidate for row in part.rows if row.binary for d in row.differences}
    labels = [run.label for run in part.runs[1:] if run.label in compared]
    places = {label: series for series, label in enumerate(labels)}
    lanes = [
        Lane(
            row.title,
            [
                Mark(places[d.candidate], 100 * d.difference, _points(d.low), _points(d.high))
                for d in row.differences
            ],
        )
        for row in part.rows
        if row.binary and row.differences
    ]
    all_rows = [d for row in whole.rows if row.binary for d in row.differences]
    values = [v for d in all_rows for v in (d.difference, d.low, d.high) if v is not None]
    axis = f"points against {part.baseline}, with {100 * part.confidence:g}% intervals"
    return _placed(labels, lanes, [0.0, *(100 * v for v in values)], axis, zero=True)


def paper_forest(cells: Sequence[PaperCell], table: str) -> Forest | None:
    """Return the paper's values (hollow) and ours of one table, or None without any of ours."""
    cells = [cell for cell in cells if cell.table == table]
    labels = list(dict.fromkeys(cell.row for cell in cells if cell.ours is not None))
    lanes: dict[str, list[Mark]] = {cell.column: [] for cell in cells}
    for cell in cells:
        if cell.row in labels:
            series = labels.index(cell.row)
            lanes[cell.column].append(Mark(series, cell.paper, hollow=True))
            if cell.ours is not None:
                lanes[cell.column].append(Mark(series, cell.ours, cell.low, cell.high))
    named = [Lane(name, marks) for name, marks in lanes.items()]
    values = [v for lane in named for m in lane.marks for v in (m.at, m.low, m.high)]
    axis = "accuracy in percent, with 95% intervals"
    return _placed(labels, named, [v for v in values if v is not None], axis, zero=False)


def ticks(low: float, high: float) -> list[float]:
    """Return round values for an axis, three to six of them inside it."""
    from matplotlib.ticker import MaxNLocator

    # The locator's ticks may lie outside: ask for more until three are inside.
    for most in range(4, 12):
        found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(value) for value in found if low <= value <= high]
        if len(inside) >= 3:
            break
    return inside


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _placed(
    labels: list[str], lanes: list[Lane], values: Iterable[float], axis: str, zero: bool
) -> Forest | None:
    values = list(values)
    if not lanes or not labels:
        return None
    room = 0.05 * (max(values) - min(values)) or 1.0
    low, high = min(values) - room, max(values) + room

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    placed = [
        Lane(
            lane.name,
            [Mark(m.series, at(m.at), place(m.low), place(m.high), m.hollow) for m in lane.marks],
        )
        for lane in lanes
    ]
    # Labels are centred on their ticks and would be cut close to an edge.
    edge = 0.03 * (high - low)
    inner = ticks(low + edge, high - edge)
    texts = [(at(value), f"{value:+g}" if zero and value else f"{value:g}") for value in inner]
    return Forest(labels, placed, texts, at(0.0) if zero else None, axis)
