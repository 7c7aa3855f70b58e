"""Tables of whole processes, of growth and of large libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.record import Growth, GrowthPoint, LibraryRow, Startup
from benchmarks.tables.section import TableSection, empty, in_seconds, milliseconds

__all__ = ["growth", "library", "startup"]


def startup(found: Startup) -> TableSection:
    """Tabulate whole processes."""
    table = empty("process|seconds|more")
    table.add_row("lm_eval --model hf", in_seconds(found.seconds["hf"]), "")
    arrow = in_seconds(found.seconds["gks_arrow"])
    table.add_row("lm_eval --model gks_arrow", arrow, f"{found.difference:+.2f}")
    plain, hooked = found.python["no bridge"], found.python["bridge"]
    table.add_row("python -c pass, hook off", f"{plain.median:.4f}", "")
    table.add_row("python -c pass", f"{hooked.median:.4f}", f"{found.bridge:+.4f}")
    return TableSection(
        "Start-up: whole processes; seconds, median (range)",
        table,
        "More: median of the rounds' differences.",
    )


def growth(found: Growth) -> list[TableSection]:
    """Tabulate how cost grows, one table per axis."""
    evaluation = f"Growth: an evaluation on {found.model}; milliseconds, median (range)"
    parts: Iterable[tuple[str, str, Sequence[GrowthPoint]]] = (
        (f"Growth: a layer's update, {found.layer}; milliseconds", "experts", found.experts),
        (evaluation, "choices", found.choices),
        (evaluation, "context", found.contexts),
    )
    made = []
    for title, axis, points in parts:
        slow, fast = ("peft", "routed") if axis == "experts" else ("plain", "packed")
        table = empty(f"{axis}|{slow}|{fast}|{slow}/{fast}")
        for point in points:
            table.add_row(
                str(point.at),
                milliseconds(point.seconds[slow]),
                milliseconds(point.seconds[fast]),
                f"{point.seconds[slow].median / point.seconds[fast].median:.2f}",
            )
        made.append(TableSection(title, table))
    return made


def library(rows: Sequence[LibraryRow]) -> TableSection:
    """Tabulate libraries of many adapters."""
    settings, stages = list(rows[0].attach), list(rows[0].peak_bytes)
    table = empty(
        "|".join(["adapters", "GB on disk", "load", *(f"attach {one}" for one in settings),
                  "evaluate", "base", *(f"GB {stage}" for stage in stages)])
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.experts),
            f"{row.file_bytes / 1e9:.2f}",
            f"{row.load:.2f}",
            *(f"{row.attach[one]:.2f}" for one in settings),
            f"{row.evaluate:.2f}",
            f"{row.base_evaluate:.2f}",
            *(f"{row.peak_bytes[stage] / 1e9:.2f}" for stage in stages),
        )
    return TableSection(
        f"Library: many random adapters for {rows[0].base}, each library in a new process; seconds",
        table,
        f"Evaluate: {rows[0].items} items of the demo's tasks with {rows[0].evaluated}; base: "
        "without adapters. GB of\na stage: peak resident memory of the process until its end; "
        "start: the model and the tasks.",
    )
