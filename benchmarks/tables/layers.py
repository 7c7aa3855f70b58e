"""Tables of single layers."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import ExpertsRow, LayerRow, RouterRow
from benchmarks.tables.section import TableSection, empty, milliseconds, short

__all__ = ["experts", "layer", "router"]


def experts(rows: Sequence[ExpertsRow]) -> TableSection:
    """Tabulate layers by the number of experts."""
    table = empty("layer|experts|tokens|base|routed|routed/base|all|write chosen|chosen|plan")
    for row in rows:
        updates = ("all", "write chosen", "chosen")
        table.add_row(
            row.layer,
            str(row.experts),
            str(row.tokens),
            *(milliseconds(row.seconds[who]) for who in ("base", "routed")),
            f"{row.routed_over_base.median_of_rounds:.3f}",
            *(short(1000 * row.seconds[one].median) if one in row.seconds else "-"
              for one in updates),
            row.plan or "-",
        )  # fmt: skip
    return TableSection(
        "Experts: a layer with libraries of different size; milliseconds, median (range)",
        table,
        "Routed/base: median of the rounds' ratios. All, write chosen, chosen: the update alone by"
        " each plan; plan: the one that routed follows.",
    )


def layer(rows: Sequence[LayerRow]) -> TableSection:
    """Tabulate the routed update of single layers."""
    table = empty(
        "layer|tokens|base's product|ours|PEFT|PEFT/ours|MB ours|MB PEFT|difference|prototypes"
    )
    for row in rows:
        prototypes = row.seconds.get("prototypes")
        table.add_row(
            f"{row.width_in}->{row.width_out}",
            str(row.tokens),
            *(milliseconds(row.seconds[who]) for who in ("base", "routed", "peft")),
            f"{row.peft_over_routed.median_of_rounds:.1f}",
            *(short(row.peak_bytes[who] / 1e6) for who in ("routed", "peft")),
            f"{row.max_difference / max(row.largest, 1e-30):.0e}",
            milliseconds(prototypes) if prototypes else "-",
        )
    return TableSection(
        "Layer: the routed update alone; milliseconds per call, median (range)",
        table,
        "PEFT/ours: median of the rounds' ratios. MB: the peak that a call allocates, with its "
        "result.\nDifference: largest entry, relative to PEFT's largest. Prototypes: the part of "
        "ours that is the\nfloat32 product with the prototypes, which 16-bit layers do separately.",
    )


def router(rows: Sequence[RouterRow]) -> TableSection:
    """Tabulate the update under each router."""
    others = [name for name in rows[0].seconds if name != "uniform"]
    table = empty("|".join(["layer", "rule", "rank", "uniform", *others]), words=2)
    for row in rows:
        ratios = [(row.over_uniform[name], row.over_arrow[name]) for name in others]
        table.add_row(
            f"{row.width_in}->{row.width_out}",
            row.rule,
            str(row.rank),
            milliseconds(row.seconds["uniform"]),
            *(" / ".join(f"{one.median_of_rounds:.2f}" for one in pair) for pair in ratios),
        )
    return TableSection(
        f"Routers: the routed update alone of {rows[0].tokens} tokens, one adapter subtracted",
        table,
        "uniform: milliseconds per call, median (range); on a CPU processor time of all threads. "
        "Others:\ntimes uniform / times arrow, medians of the rounds' ratios.",
    )
