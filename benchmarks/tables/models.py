"""Tables of whole models."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import FullModel, ModelRow
from benchmarks.tables.section import TableSection, empty, in_seconds, milliseconds
from benchmarks.timing import ratio

__all__ = ["full_evaluations", "full_forwards", "model"]


def model(rows: Sequence[ModelRow]) -> TableSection:
    """Tabulate forwards of whole models."""
    table = empty("model|forward|base|ours|PEFT|ours/base|PEFT/base|hooks|products", words=2)
    for row in rows:
        shape = f"{row.phase} {row.batch}x{row.tokens}"
        table.add_row(
            row.model,
            f"{shape} after {row.cached}" if row.cached else shape,
            *(milliseconds(row.seconds[who]) for who in ("base", "routed", "peft")),
            f"{row.routed_over_base.median_of_rounds:.3f}",
            f"{row.peft_over_base.median_of_rounds:.3f}",
            *(_over_base(row, who) for who in ("hooks", "products")),
        )
    return TableSection(
        "Model: one forward without head; milliseconds, median (range)",
        table,
        "Ratios: median of the rounds' ratios. hooks, products: ratios of hooks that do nothing,\n"
        "and of hooks with a layer's two products only.",
    )


def full_forwards(rows: Sequence[FullModel]) -> TableSection:
    """Tabulate forwards of the full-size model."""
    table = empty("weights|forward|base|ours|ours/base|GB", words=2)
    for row in rows:
        for one in row.forwards:
            shape = f"{one.phase} {one.batch}x{one.tokens}"
            table.add_row(
                row.weights,
                f"{shape} after {one.cached}" if one.cached else shape,
                *(milliseconds(one.seconds[who]) for who in ("base", "routed")),
                f"{one.routed_over_base.median_of_rounds:.3f}",
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.1f}",
            )
    return TableSection(
        f"Full size: {rows[0].layers} layers of width {rows[0].hidden}, random weights; one "
        "forward without head; milliseconds, median (range)",
        table,
        "Captured: as a CUDA graph. GB: largest memory in use during all rows of these weights.",
    )


def full_evaluations(rows: Sequence[FullModel]) -> TableSection:
    """Tabulate evaluations of the full-size model."""
    table = empty("weights|texts|distinct tokens|run|base|ours|tokens / second|Table 1, minutes")
    for row in rows:
        one = row.evaluation
        table.add_row(
            row.weights,
            str(one.requests),
            str(one.distinct_tokens),
            str(one.computed_tokens),
            *(in_seconds(one.seconds[who]) for who in ("base", "routed")),
            f"{one.tokens_per_second:.0f}",
            f"{one.table_minutes:.1f}",
        )
    one = rows[0].evaluation
    return TableSection(
        "Full size: whole random texts by the packed scorer; seconds, median (range)",
        table,
        f"Table 1: projected from ours, {one.table_settings} settings of about "
        f"{one.table_tokens / 1e6:.1f} million distinct tokens each, without loading and "
        "tokenisation.",
    )


def _over_base(row: ModelRow, who: str) -> str:
    timing = row.seconds.get(who)
    if timing is None:
        return "-"
    return f"{ratio(timing, row.seconds['base']).median_of_rounds:.3f}"
