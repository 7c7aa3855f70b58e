"""A comparison as CSV: one line per row and run, then one per rank; numbers unformatted."""

from __future__ import annotations

import csv
import io

from gks_eval.evidence.comparison import Comparison, Leaderboard, Place, Score
from gks_eval.evidence.tables.escape import csv_text

__all__ = ["to_csv"]

_COLUMNS = (
    "kind name metric run n value low high interval baseline difference difference_low "
    "difference_high p p_holm pairs test gains losses detectable p_equal p_equal_holm verdict "
    "clusters design_effect note rank family needs time_ratio"
).split()


def to_csv(comparison: Comparison) -> str:
    """Return every score and difference as fractions, at full precision."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    lines: list[dict[str, object]] = []
    for row in comparison.rows:
        by_run = {d.candidate: d for d in row.differences}
        for label, score in row.scores.items():
            line = {
                "kind": row.kind,
                "name": row.name,
                "metric": row.metric,
                "run": label,
                **_score(score),
            }
            if d := by_run.get(label):
                line |= {
                    "baseline": comparison.baseline,
                    "difference": d.difference,
                    "difference_low": d.low,
                    "difference_high": d.high,
                    "p": d.p,
                    "p_holm": d.p_holm,
                    "pairs": d.n,
                    "test": d.method,
                    "gains": d.gains,
                    "losses": d.losses,
                    "detectable": d.detectable,
                    "p_equal": d.p_equal,
                    "p_equal_holm": d.p_equal_holm,
                    "verdict": d.verdict,
                    "clusters": d.clusters,
                    "design_effect": d.design_effect,
                    "note": d.note,
                }
            lines.append(line)
    if board := comparison.leaderboard:
        lines += [_place(place, board) for place in board.places]
    for line in lines:
        writer.writerow({k: csv_text(v) if isinstance(v, str) else v for k, v in line.items()})
    return out.getvalue()


def _score(score: Score) -> dict[str, object]:
    return {
        "n": score.n,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "interval": score.method,
    }


def _place(place: Place, board: Leaderboard) -> dict[str, object]:
    return {
        "kind": "leaderboard",
        "name": " ".join(board.tasks),
        "run": place.run,
        **_score(place.score),
        "rank": place.rank,
        "family": place.family,
        "needs": place.needs,
        "time_ratio": place.time_ratio,
    }
