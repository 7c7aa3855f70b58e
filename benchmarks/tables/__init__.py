"""A run as tables in plain text, for a terminal or a page of documentation."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from benchmarks.record import Bar, Record
from benchmarks.tables import evaluations, layers, models, processes
from benchmarks.tables.section import TableSection, empty, short

__all__ = ["TableSection", "heading", "rendered", "sections"]


def heading(record: Record) -> str:
    """Return one paragraph: date, machine and versions."""
    machine, made = record.hardware, record.versions
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    return (
        f"{record.date[:10]}; {device}, {machine['threads']} threads; "
        f"{record.arguments.get('dtype')}; torch {made.get('torch')}, transformers "
        f"{made.get('transformers')}, peft {made.get('peft')}, lm-eval {made.get('lm-eval')}; "
        f"seed {record.seed}; {record.minutes:.1f} minutes."
    )


def rendered(record: Record) -> str:
    """Return everything as plain text, as wide as needed."""
    text = io.StringIO()
    console = Console(file=text, width=400, color_system=None)
    for section in sections(record):
        console.print(section.title, markup=False, highlight=False)
        console.print(section.table)
        if section.notes:
            console.print(section.notes, markup=False, highlight=False)
        console.print()
    lines = [heading(record), "", *text.getvalue().splitlines()]
    return "\n".join(line.rstrip() for line in lines).strip() + "\n"


def sections(record: Record) -> list[TableSection]:
    """Return one table per kind of rows that was run, and the goals last."""
    found: list[TableSection] = []
    if record.layer:
        found.append(layers.layer(record.layer))
    if record.router:
        found.append(layers.router(record.router))
    if record.experts:
        found.append(layers.experts(record.experts))
    if record.model:
        found.append(models.model(record.model))
    for evaluation in record.evaluation:
        found += [
            evaluations.evaluation(evaluation),
            evaluations.sets(evaluation),
            evaluations.forward(evaluation),
        ]
    if record.startup is not None:
        found.append(processes.startup(record.startup))
    if record.growth is not None:
        found += processes.growth(record.growth)
    if record.generation:
        found.append(evaluations.generation(record.generation))
    if record.library:
        found.append(processes.library(record.library))
    if record.full:
        found += [models.full_forwards(record.full), models.full_evaluations(record.full)]
    if record.bars:
        found.append(_bars(record.bars))
    return found


def _bars(bars: Sequence[Bar]) -> TableSection:
    table = empty("what|wanted|measured|met", words=2)
    for bar in bars:
        table.add_row(bar.what, bar.wanted, short(bar.measured), "yes" if bar.met else "no")
    return TableSection("Goals", table)
