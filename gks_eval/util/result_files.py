"""Names of the files that lm-eval writes: results, and the samples next to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["CELL_FILE", "RESULTS", "is_results", "samples_of", "timestamp_of"]

RESULTS: Final = "results_*.json"
"""Glob of results; with ``--output_path x.json`` they are called ``x_<stamp>.json`` instead."""

CELL_FILE: Final = "cell.json"
"""What a grid records next to the results of a setting."""

_SAMPLES: Final = "samples_"
# lm-eval stamps its files with datetime.isoformat(), ":" replaced by "-".
_STAMP: Final = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl?$")


def timestamp_of(path: Path) -> str | None:
    """Return the time stamp that lm-eval put into a file's name, or None."""
    found = _STAMP.search(path.name)
    return found.group(1) if found else None


def is_results(path: Path) -> bool:
    """Return whether a file is called as results are."""
    if path.suffix != ".json" or path.name.startswith(_SAMPLES):
        return False
    return path.stem == "results" or path.match(RESULTS) or bool(timestamp_of(path))


def samples_of(results: Path, task: str) -> Path | None:
    """Return the samples of a task that were written with a results file; None without any."""
    if Path(task).name != task:
        return None
    stamp = timestamp_of(results)
    path = results.with_name(
        f"{_SAMPLES}{task}_{stamp}.jsonl" if stamp else f"{_SAMPLES}{task}.jsonl"
    )
    return path if path.is_file() else None
