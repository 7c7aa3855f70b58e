"""What a setting of a grid costs: its measured time per token, relative to the base's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gks_eval.evidence.runs import Run
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.result_files import CELL_FILE

__all__ = ["time_ratios"]


def time_ratios(runs: Sequence[Run]) -> dict[str, float]:
    """Return by label the time per token as a ratio to that of ``base`` in the same grid.

    The times are of single runs, as the grid records them. Runs outside a grid, and runs of a grid
    without a finished ``base``, are left out.
    """
    times = {run.label: _seconds_per_token(run) for run in runs}
    bases = {
        run.folder.parent: times[run.label] for run in runs if run.info.get("family") == "base"
    }
    found: dict[str, float] = {}
    for run in runs:
        own, base = times[run.label], bases.get(run.folder.parent)
        if own and base:
            found[run.label] = own / base
    return found


def _seconds_per_token(run: Run) -> float | None:
    spent = read_or_empty(run.folder / CELL_FILE).get("spent")
    if not isinstance(spent, dict):
        return None
    seconds, tokens = spent.get("seconds"), spent.get("distinct_tokens")
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in (seconds, tokens)):
        return None
    ratio = seconds / tokens if tokens else 0.0
    return ratio if math.isfinite(ratio) and ratio > 0.0 else None
