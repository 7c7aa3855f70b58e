"""Tables and the picture of docs/study.md, from the records of run.py.

``python docs/study/page.py RECORD`` writes tables.md and study.png into RECORD.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from plan import TREATMENTS, controlled, slug

from gks_eval.evidence.accuracy import find_accuracy
from gks_eval.evidence.overlap import find_overlaps
from gks_eval.evidence.replicate_rows import MEAN, Replicates
from gks_eval.evidence.stats.holm import holm
from gks_eval.library.geometry import summary
from gks_eval.util.json_file import parse_json

matplotlib.use("Agg")
from matplotlib import pyplot

MEANS = ("study", "study_english", "study_german", "study_french")


@dataclass(frozen=True)
class Change:
    """A change in points with its 95% interval and p.

    Attributes:
        name: Of the row.
        value: Method less control.
        low: Lower bound; NaN if nothing varies.
        high: Upper bound.
        p: Two-sided.
        verdict: Whether the change is less than two points.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    verdict: str = ""

    @property
    def points(self) -> str:
        """The change with its interval."""
        interval = (
            f"[{self.low:+.1f}, {self.high:+.1f}]" if self.low <= self.high else "[none varies]"
        )
        value = round(self.value, 1) + 0.0  # without the sign of a negative zero
        return f"{value:+.1f} {interval} | {self.p:.2g}"


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return parse_json(path.read_bytes(), constants=True)


def table(heads: Sequence[str], rows: Iterable[str]) -> str:
    """Return a Markdown table of finished rows."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows]) + "\n"


def over_seeds(path: Path) -> list[Change]:
    """Return treatment less control, for every control of a file of replicates."""
    found = Replicates.model_validate(read(path))
    names = [row.name for row in found.rows]
    mean = next((name for name in (MEANS[0], MEAN) if name in names), names[0])
    return [
        Change(
            row.method,
            -100 * row.change,
            -100 * (math.nan if row.high is None else row.high),
            -100 * (math.nan if row.low is None else row.low),
            row.p,
        )
        for row in found.rows
        if row.name == mean
    ]


def of_methods(record: Path) -> list[Change]:
    """Return method less its control, for every method of the leaderboard."""
    found = []
    for method in controlled(prepared=True):
        path = record / f"control-{slug(method)}.json"
        if not path.exists():
            continue
        found += [
            replace(one, name=method) for one in differences(path) if one.name == slug(method)
        ]
    return found


def differences(path: Path) -> list[Change]:
    """Return the changes of the mean over all sets, from a file of `gks-eval compare`."""
    rows = read(path)["rows"]
    row = next((row for row in rows if row["name"] == MEANS[0]), rows[-1])
    return [
        Change(
            d["candidate"],
            *(100 * d[key] for key in ("difference", "low", "high")),
            d["p"],
            d["verdict"],
        )
        for d in row["differences"]
    ]


def corrected(rows: Sequence[Change]) -> list[tuple[Change, float]]:
    """Return the rows, each with its p after Holm's correction over all of them."""
    return [*zip(rows, holm([row.p for row in rows]), strict=True)]


def changes(rows: Sequence[Change], first: str) -> str:
    """Tabulate changes with Holm's correction over the rows."""
    heads = (first, "change", "p", "p Holm", *("within 2 points",) * bool(rows[0].verdict))
    lines = (
        f"| `{row.name}` | {row.points} | {p:.2g} |" + f" {row.verdict} |" * bool(row.verdict)
        for row, p in corrected(rows)
    )
    return table(heads, lines)


def overview(record: Path) -> str:
    """Tabulate every method against the base and against its control, as docs/study.md has it."""
    board = record / "leaderboard.json"
    places = read(board)["leaderboard"]["places"]
    means = {place["run"]: place["score"]["value"] for place in places}
    base = {row.name: row for row in differences(board)}
    heads = ("method", "mean", "less base", "p", "less random", "p", "p Holm", "within 2")
    lines = (
        f"| `{row.name}` | {100 * means[slug(row.name)]:.1f} | {base[slug(row.name)].points} | "
        f"{row.points} | {p:.2g} | {row.verdict} |"
        for row, p in corrected(of_methods(record))
    )
    return table(heads, lines)


def against_controls(record: Path) -> dict[str, dict[str, tuple[Change, float]]]:
    """Return change and Holm's p by treatment and control; experts count, but are left out."""
    found = {}
    for name, treatment in TREATMENTS.items():
        for path in record.glob(f"replicates_*-{name}.json"):
            found[treatment] = {
                row.name.replace(f"_preset-{name}", "").removesuffix("_seed-0"): (row, p)
                for row, p in corrected(over_seeds(path))
                if not row.name.startswith("expert-")
            }
    return found


def treatments(record: Path) -> str:
    """Tabulate both treatments less their controls, as docs/study.md has it."""
    found = against_controls(record)
    heads = ["control"]
    for treatment in found:
        heads += [f"`{treatment}` less control", "p", "p Holm"]
    lines = []
    for name in next(iter(found.values()), {}):
        cells = (rows[name] for rows in found.values())
        lines.append(
            f"| `{name}` | " + " | ".join(f"{c.points} | {p:.2g}" for c, p in cells) + " |"
        )
    return table(heads, lines)


def leaderboard(record: Path) -> str:
    """Tabulate rank and means of every setting."""
    found = read(record / "leaderboard.json")
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    columns = [name for name in MEANS[1:] if name in rows]
    heads = ("rank", "setting", "mean", *(f"`{name}`" for name in columns))
    places = sorted(found["leaderboard"]["places"], key=lambda place: -place["score"]["value"])

    def line(place: dict[str, Any]) -> str:
        scores = [place["score"], *(rows[name][place["run"]] for name in columns)]
        means = (
            f"{100 * s['value']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in scores
        )
        return f"| {place['rank']} | `{place['run']}` | " + " | ".join(means) + " |"

    return table(heads, map(line, places))


def sections(record: Path) -> Iterator[tuple[str, str]]:
    """Yield the tables with their titles."""
    if replicates := sorted(record.glob("replicates_*.json")):
        yield "treatments and their controls, 3 seeds", treatments(record)
    for path in replicates:
        yield path.stem, changes(over_seeds(path), "control")
    if (record / "leaderboard.json").exists():
        yield "methods, the base and random weights", overview(record)
        yield "leaderboard", leaderboard(record)
        yield (
            "settings against the base",
            changes(differences(record / "leaderboard.json"), "setting"),
        )
    for accuracy in find_accuracy(record):
        shares = accuracy.settings.items()
        rows = (
            f"| `{k}` | {100 * s.all_tokens:.1f} | {100 * s.all_sequences:.1f} |" for k, s in shares
        )
        counts = f"{sum(accuracy.rows.values())} rows, chance {100 * accuracy.chance:.1f}"
        yield f"routing accuracy, {counts}", table(("setting", "tokens", "sequences"), rows)
    for overlap in find_overlaps(record):
        rows = (
            f"| `{k}` | {t.items} | {100 * t.ngram:.1f} | {100 * t.question:.1f} |"
            for k, t in overlap.tasks.items()
        )
        yield f"overlap, {overlap.n}-grams", table(("set", "items", "n-gram", "question"), rows)
    for path in sorted(record.glob("geometry_*.json")):
        rows = (
            f"| {row.rule} | {row.norm:.2f} | {row.mixture['factors']:.2f} | "
            f"{row.mixture['outputs']:.2f} | {row.cosine:+.3f} |"
            for row in summary(read(path))
        )
        heads = ("rule", "norm", "even mix, factors", "even mix, outputs", "cosine of experts")
        yield path.stem, table(heads, rows)


def draw(record: Path, picture: Path) -> None:
    """Draw the changes against the controls: all methods, and both treatments over seeds."""
    panels = []
    if methods := of_methods(record):
        panels.append(("method less random weights, one seed", methods))
    for treatment, found in against_controls(record).items():
        rows = [replace(row, name=name) for name, (row, _) in found.items()]
        panels.append((f"{treatment} less control, 3 seeds", rows))
    size = (4.2 * len(panels), 0.8 + 0.21 * max(len(rows) for _, rows in panels))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True)
    for axis, (title, rows) in zip(axes[0], panels, strict=True):
        places = range(len(rows), 0, -1)
        for place, row in zip(places, rows, strict=True):
            axis.plot([row.low, row.high], [place, place], color="#888", linewidth=1.4)
            axis.plot(row.value, place, "o", color="#1f4e9c", markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.axvspan(-2, 2, color="#1f4e9c", alpha=0.08, linewidth=0)
        axis.set_yticks(list(places), [row.name for row in rows], fontsize=7)
        axis.set_title(title, fontsize=8, loc="right")
        axis.set_xlabel("points, 95% interval", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=160)
    pyplot.close(figure)


def main(record: Path) -> None:
    """Write tables.md and study.png."""
    text = "\n".join(f"## {title}\n\n{content}" for title, content in sections(record))
    (record / "tables.md").write_text(f"# Tables of the study\n\n{text}", "utf-8")
    draw(record, record / "study.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
