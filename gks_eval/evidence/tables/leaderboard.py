"""The cells of a leaderboard: families one after another, each by rank."""

from __future__ import annotations

from itertools import groupby

from gks_eval.evidence.comparison import Comparison, Leaderboard, Place
from gks_eval.evidence.leaderboard import FAMILIES
from gks_eval.evidence.tables.content import Table, interval, number

__all__ = ["by_family", "leaderboard_table", "leaderboard_tables", "ratio"]


def by_family(board: Leaderboard) -> list[tuple[str, list[Place]]]:
    """Return the places of each family, best first; unknown families come last."""
    order = {name: place for place, name in enumerate(FAMILIES)}

    def place_of(place: Place) -> tuple[int, str]:
        return order.get(place.family, len(order)), place.family

    found = groupby(sorted(board.places, key=place_of), key=lambda place: place.family)
    return [(family, list(places)) for family, places in found]


def leaderboard_tables(comparison: Comparison) -> list[Table]:
    """Return the table of a comparison's leaderboard; none without one."""
    board = comparison.leaderboard
    return [leaderboard_table(board, comparison.confidence)] if board else []


def leaderboard_table(board: Leaderboard, confidence: float) -> Table:
    """Return a leaderboard with one row per run, grouped by family."""
    rows: list[list[str]] = []
    nested: list[list[str]] = []
    marks: dict[tuple[int, int], str] = {}
    nested_marks: dict[tuple[int, int], str] = {}
    columns = ["rank", "mean", f"{100 * confidence:g}% interval", "time", "needs"]
    for family, places in by_family(board):
        nested.append([family, *[""] * len(columns)])
        for place in places:
            if place.rank == 1:
                marks[len(rows), 2] = nested_marks[len(nested), 1] = "best"
            cells = _cells(place)
            rows.append([family, place.run, *cells])
            nested.append([f"  {place.run}", *cells])
    notes = _notes(board, confidence)
    title = "Leaderboard"
    by_name = Table(title, ["setting", *columns], nested, nested_marks, notes, spare=0)
    return Table(title, ["family", "setting", *columns], rows, marks, notes, keys=2, narrow=by_name)


def ratio(place: Place) -> str:
    """Return the time per token relative to the base's, as text."""
    return "–" if place.time_ratio is None else f"{place.time_ratio:.2f}x"


def _cells(place: Place) -> list[str]:
    score = place.score
    bounds = interval(score.low, score.high, binary=True)
    return [str(place.rank), number(score.value, True), bounds, ratio(place), place.needs or "–"]


def _notes(board: Leaderboard, confidence: float) -> list[str]:
    tasks = board.tasks[0] if len(board.tasks) == 1 else f"{len(board.tasks)} tasks"
    sizes = " by size" if board.weighting == "by size" and len(board.tasks) > 1 else ""
    n = board.places[0].score.n
    pairs = len(board.places) * (len(board.places) - 1) // 2
    notes = [
        f"mean: over {tasks}{sizes}, n = {n:,} items, in percent. rank: 1 + the number of runs "
        f"that are significantly better, by paired tests with Holm over {pairs:,} pairs at "
        f"{round(100 * (1.0 - confidence), 10):g}%."
    ]
    if any(place.time_ratio is not None for place in board.places):
        notes.append(
            "time: per token relative to base in the same grid, wall clock of single runs."
        )
    return [*notes, *(f"{note[0].upper()}{note[1:]}." for note in board.notes)]
