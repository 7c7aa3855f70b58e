"""The cells of the table of where runs spent their time, from the profiles next to them."""

from __future__ import annotations

from collections.abc import Sequence

from gks_eval.evidence.runs import Run
from gks_eval.evidence.tables.content import Table
from gks_eval.util.profile_file import PHASES, read_profile

__all__ = ["time_table"]


def time_table(runs: Sequence[Run]) -> Table | None:
    """Return seconds and tokens of the runs that have a profile; None if no run has one.

    Raises:
        ResultsError: A profile is broken.
    """
    profiles = [(run.label, read_profile(run.folder)) for run in runs]
    rows = [
        [
            label,
            f"{found.seconds:.1f}",
            *(f"{found.phases.get(name, 0.0):.1f}" for name in PHASES),
            f"{found.tokens:,}",
            f"{found.distinct_tokens:,}",
        ]
        for label, found in profiles
        if found is not None
    ]
    if not rows:
        return None
    note = (
        "Seconds of single runs, wall clock. The first setting of a grid loads the base, and makes "
        "and plans the requests of all. tokens: what lm-eval's own scorer runs, without padding; "
        "distinct: what the packed scorer runs."
    )
    return Table("Time", ["setting", "seconds", *PHASES, "tokens", "distinct"], rows, {}, [note])
