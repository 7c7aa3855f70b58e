"""Tables of evaluations and generation."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Evaluation, GenerationRow
from benchmarks.tables.section import TableSection, empty, in_seconds

__all__ = ["evaluation", "forward", "generation", "sets"]


def evaluation(found: Evaluation) -> TableSection:
    """Tabulate the scorers of an evaluation."""
    together = found.together
    table = empty("scorer|seconds|tokens run|of distinct|equal predictions|largest difference")
    for who, timing in together.seconds.items():
        tokens, agreement = together.computed_tokens[who], found.agreement.get(who)
        table.add_row(
            who,
            in_seconds(timing),
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


def sets(found: Evaluation) -> TableSection:
    """Tabulate an evaluation set by set."""
    names = {who: None for one in found.alone.values() for who in one.seconds}
    table = empty("|".join(["set", "items", *names, "PEFT's best/packed", "packed of distinct"]))
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


def forward(found: Evaluation) -> TableSection:
    """Tabulate tokens per second, the plain forward's and the evaluation's."""
    forward = found.forward
    table = empty("what|tokens / second")
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


def generation(rows: Sequence[GenerationRow]) -> TableSection:
    """Tabulate open-ended texts."""
    names = list(rows[0].seconds)
    others = [name for name in names if name != "hf"]
    table = empty(
        "|".join(["texts end", *names, *(f"{one}/hf" for one in others), "equal"]), words=1
    )
    for row in rows:
        table.add_row(
            row.kind,
            *(in_seconds(row.seconds[who]) for who in names),
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
