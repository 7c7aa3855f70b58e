"""A run as tables in plain text, for a terminal or a page of documentation."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.record import (
    Bar,
    Evaluation,
    ExpertsRow,
    FullModel,
    GenerationRow,
    Growth,
    GrowthPoint,
    LayerRow,
    LibraryRow,
    ModelRow,
    Record,
    RouterRow,
    Startup,
    Timing,
)
from benchmarks.timing import ratio

__all__ = ["TableSection", "heading", "rendered", "sections"]


@dataclass(frozen=True)
class TableSection:
    """A table with a title above and notes below."""

    title: str
    table: Table
    notes: str = ""


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
        found.append(_layer(record.layer))
    if record.router:
        found.append(_router(record.router))
    if record.experts:
        found.append(_experts(record.experts))
    if record.model:
        found.append(_model(record.model))
    for evaluation in record.evaluation:
        found += [_evaluation(evaluation), _sets(evaluation), _forward(evaluation)]
    if record.startup is not None:
        found.append(_startup(record.startup))
    if record.growth is not None:
        found += _growth(record.growth)
    if record.generation:
        found.append(_generation(record.generation))
    if record.library:
        found.append(_library(record.library))
    if record.full:
        found += [_full_forwards(record.full), _full_evaluations(record.full)]
    if record.bars:
        found.append(_bars(record.bars))
    return found


def _table(columns: str, *, words: int = 1) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=True)
    return table


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def _milliseconds(timing: Timing) -> str:
    low, middle, high = (
        _short(1000 * seconds) for seconds in (timing.minimum, timing.median, timing.maximum)
    )
    return f"{middle} ({low}-{high})"


def _seconds(timing: Timing) -> str:
    if len(timing.rounds) == 1:
        return f"{timing.median:.2f}"
    return f"{timing.median:.2f} ({timing.minimum:.2f}-{timing.maximum:.2f})"


def _experts(rows: Sequence[ExpertsRow]) -> TableSection:
    table = _table("layer|experts|tokens|base|routed|routed/base|all|write chosen|chosen|plan")
    for row in rows:
        updates = ("all", "write chosen", "chosen")
        table.add_row(
            row.layer,
            str(row.experts),
            str(row.tokens),
            *(_milliseconds(row.seconds[who]) for who in ("base", "routed")),
            f"{row.routed_over_base.median_of_rounds:.3f}",
            *(_short(1000 * row.seconds[one].median) if one in row.seconds else "-"
              for one in updates),
            row.plan or "-",
        )  # fmt: skip
    return TableSection(
        "Experts: a layer with libraries of different size; milliseconds, median (range)",
        table,
        "Routed/base: median of the rounds' ratios. All, write chosen, chosen: the update alone by"
        " each plan; plan: the one that routed follows.",
    )


def _layer(rows: Sequence[LayerRow]) -> TableSection:
    table = _table(
        "layer|tokens|base's product|ours|PEFT|PEFT/ours|MB ours|MB PEFT|difference|prototypes"
    )
    for row in rows:
        prototypes = row.seconds.get("prototypes")
        table.add_row(
            f"{row.width_in}->{row.width_out}",
            str(row.tokens),
            *(_milliseconds(row.seconds[who]) for who in ("base", "routed", "peft")),
            f"{row.peft_over_routed.median_of_rounds:.1f}",
            *(_short(row.peak_bytes[who] / 1e6) for who in ("routed", "peft")),
            f"{row.max_difference / max(row.largest, 1e-30):.0e}",
            _milliseconds(prototypes) if prototypes else "-",
        )
    return TableSection(
        "Layer: the routed update alone; milliseconds per call, median (range)",
        table,
        "PEFT/ours: median of the rounds' ratios. MB: the peak that a call allocates, with its "
        "result.\nDifference: largest entry, relative to PEFT's largest. Prototypes: the part of "
        "ours that is the\nfloat32 product with the prototypes, which 16-bit layers do separately.",
    )


def _router(rows: Sequence[RouterRow]) -> TableSection:
    others = [name for name in rows[0].seconds if name != "uniform"]
    table = _table("|".join(["layer", "rule", "rank", "uniform", *others]), words=2)
    for row in rows:
        ratios = [(row.over_uniform[name], row.over_arrow[name]) for name in others]
        table.add_row(
            f"{row.width_in}->{row.width_out}",
            row.rule,
            str(row.rank),
            _milliseconds(row.seconds["uniform"]),
            *(" / ".join(f"{one.median_of_rounds:.2f}" for one in pair) for pair in ratios),
        )
    return TableSection(
        f"Routers: the routed update alone of {rows[0].tokens} tokens, one adapter subtracted",
        table,
        "uniform: milliseconds per call, median (range); on a CPU processor time of all threads. "
        "Others:\ntimes uniform / times arrow, medians of the rounds' ratios.",
    )


def _model(rows: Sequence[ModelRow]) -> TableSection:
    table = _table("model|forward|base|ours|PEFT|ours/base|PEFT/base|hooks|products", words=2)
    for row in rows:
        shape = f"{row.phase} {row.batch}x{row.tokens}"
        table.add_row(
            row.model,
            f"{shape} after {row.cached}" if row.cached else shape,
            *(_milliseconds(row.seconds[who]) for who in ("base", "routed", "peft")),
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


def _over_base(row: ModelRow, who: str) -> str:
    timing = row.seconds.get(who)
    if timing is None:
        return "-"
    return f"{ratio(timing, row.seconds['base']).median_of_rounds:.3f}"


def _evaluation(found: Evaluation) -> TableSection:
    together = found.together
    table = _table("scorer|seconds|tokens run|of distinct|equal predictions|largest difference")
    for who, timing in together.seconds.items():
        tokens, agreement = together.computed_tokens[who], found.agreement.get(who)
        table.add_row(
            who,
            _seconds(timing),
            str(tokens),
            f"{tokens / together.distinct_tokens:.2f}",
            f"{agreement.equal} of {agreement.items}" if agreement else "-",
            f"{agreement.max_difference:.0e}" if agreement else "-",
        )
    speed_up = together.peft_over_packed.median_of_rounds
    return TableSection(
        f"Evaluation {found.name}: {together.items} items of {len(found.alone)} sets, "
        f"{together.requests} requests, in one call; {found.base}, {found.library}, "
        f"{found.experts} experts",
        table,
        f"{together.distinct_tokens} distinct tokens. peft N, base N: lm-eval's HFLM at batch size "
        "N, with PEFT's Arrow and without\nadapters; plain N: ours, by lm-eval's own scorer; "
        "packed: ours. Equal predictions and largest difference of a\nlog-likelihood: against PEFT "
        f"at its first batch size. {together.peer_best} / packed: {speed_up:.2f}.",
    )


def _sets(found: Evaluation) -> TableSection:
    names = {who: None for one in found.alone.values() for who in one.seconds}
    table = _table("|".join(["set", "items", *names, "PEFT's best/packed", "packed of distinct"]))
    for name, one in found.alone.items():
        table.add_row(
            name.removeprefix("gks_"),
            str(one.items),
            *(f"{one.seconds[who].median:.2f}" for who in names),
            f"{one.peft_over_packed.median_of_rounds:.2f}",
            f"{one.computed_tokens['packed'] / one.distinct_tokens:.2f}",
        )
    return TableSection(
        f"Evaluation {found.name}: each set in a separate call; seconds",
        table,
        "Packed of distinct: tokens run over distinct tokens.",
    )


def _forward(found: Evaluation) -> TableSection:
    forward = found.forward
    table = _table("what|tokens / second")
    for shape, rate in forward.tokens_per_second.items():
        best = ", the best" if shape == forward.best else ""
        table.add_row(f"plain forward {shape}{best}", f"{rate:.0f}")
    table.add_row("packed evaluation", f"{forward.packed_tokens_per_second:.0f}")
    return TableSection(
        f"Evaluation {found.name}: tokens per second of the routed model",
        table,
        f"The packed evaluation, counting distinct tokens, with tokenisation and head, reaches "
        f"{forward.share:.1%} of\nthe best plain forward of hidden states.",
    )


def _startup(found: Startup) -> TableSection:
    table = _table("process|seconds|more")
    table.add_row("lm_eval --model hf", _seconds(found.seconds["hf"]), "")
    arrow = _seconds(found.seconds["gks_arrow"])
    table.add_row("lm_eval --model gks_arrow", arrow, f"{found.difference:+.2f}")
    plain, hooked = found.python["no bridge"], found.python["bridge"]
    table.add_row("python -c pass, hook off", f"{plain.median:.4f}", "")
    table.add_row("python -c pass", f"{hooked.median:.4f}", f"{found.bridge:+.4f}")
    return TableSection(
        "Start-up: whole processes; seconds, median (range)",
        table,
        "More: median of the rounds' differences.",
    )


def _growth(found: Growth) -> list[TableSection]:
    evaluation = f"Growth: an evaluation on {found.model}; milliseconds, median (range)"
    parts: Iterable[tuple[str, str, Sequence[GrowthPoint]]] = (
        (f"Growth: a layer's update, {found.layer}; milliseconds", "experts", found.experts),
        (evaluation, "choices", found.choices),
        (evaluation, "context", found.contexts),
    )
    made = []
    for title, axis, points in parts:
        slow, fast = ("peft", "routed") if axis == "experts" else ("plain", "packed")
        table = _table(f"{axis}|{slow}|{fast}|{slow}/{fast}")
        for point in points:
            table.add_row(
                str(point.at),
                _milliseconds(point.seconds[slow]),
                _milliseconds(point.seconds[fast]),
                f"{point.seconds[slow].median / point.seconds[fast].median:.2f}",
            )
        made.append(TableSection(title, table))
    return made


def _generation(rows: Sequence[GenerationRow]) -> TableSection:
    names = list(rows[0].seconds)
    others = [name for name in names if name != "hf"]
    table = _table(
        "|".join(["texts end", *names, *(f"{one}/hf" for one in others), "equal"]), words=1
    )
    for row in rows:
        table.add_row(
            row.kind,
            *(_seconds(row.seconds[who]) for who in names),
            *(f"{row.over_hf[who].median_of_rounds:.2f}" for who in others),
            f"{row.equal} of {row.prompts}",
        )
    return TableSection(
        f"Generation: {rows[0].prompts} prompts, greedy, batch size {rows[0].batch}; "
        f"{rows[0].model}; seconds, median (range)",
        table,
        "On a CPU processor time of all threads. Ratios: median of the rounds' ratios. Equal: texts"
        " of router=none that\nequal those of hf, which has no adapters. Routed texts differ,"
        " with stop strings also in length.",
    )


def _library(rows: Sequence[LibraryRow]) -> TableSection:
    settings, stages = list(rows[0].attach), list(rows[0].peak_bytes)
    table = _table(
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


def _full_forwards(rows: Sequence[FullModel]) -> TableSection:
    table = _table("weights|forward|base|ours|ours/base|GB", words=2)
    for row in rows:
        for one in row.forwards:
            shape = f"{one.phase} {one.batch}x{one.tokens}"
            table.add_row(
                row.weights,
                f"{shape} after {one.cached}" if one.cached else shape,
                *(_milliseconds(one.seconds[who]) for who in ("base", "routed")),
                f"{one.routed_over_base.median_of_rounds:.3f}",
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.1f}",
            )
    return TableSection(
        f"Full size: {rows[0].layers} layers of width {rows[0].hidden}, random weights; one "
        "forward without head; milliseconds, median (range)",
        table,
        "Captured: as a CUDA graph. GB: largest memory in use during all rows of these weights.",
    )


def _full_evaluations(rows: Sequence[FullModel]) -> TableSection:
    table = _table("weights|texts|distinct tokens|run|base|ours|tokens / second|Table 1, minutes")
    for row in rows:
        one = row.evaluation
        table.add_row(
            row.weights,
            str(one.requests),
            str(one.distinct_tokens),
            str(one.computed_tokens),
            *(_seconds(one.seconds[who]) for who in ("base", "routed")),
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


def _bars(bars: Sequence[Bar]) -> TableSection:
    table = _table("what|wanted|measured|met", words=2)
    for bar in bars:
        table.add_row(bar.what, bar.wanted, _short(bar.measured), "yes" if bar.met else "no")
    return TableSection("Goals", table)
