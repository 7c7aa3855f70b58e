"""A comparison as CSV: one line per row and run, numbers unformatted."""

from __future__ import annotations

import csv
import io

from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.tables.escape import csv_text

__all__ = ["to_csv"]

_COLUMNS = (
    "kind name metric run n value low high interval baseline difference difference_low "
    "difference_high p p_holm pairs test gains losses detectable note"
).split()


def to_csv(comparison: Comparison) -> str:
    """Return every score and difference as fractions, at full precision."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        by_run = {d.candidate: d for d in row.differences}
        for label, score in row.scores.items():
            line: dict[str, object] = {
                "kind": row.kind,
                "name": row.name,
                "metric": row.metric,
                "run": label,
                "n": score.n,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "interval": score.method,
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
                    "note": d.note,
                }
            writer.writerow({k: csv_text(v) if isinstance(v, str) else v for k, v in line.items()})
    return out.getvalue()
