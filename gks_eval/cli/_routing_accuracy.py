"""`gks-eval routes --accuracy`: the settings' table, and the record of all layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gks_eval.method.setting import Setting
    from gks_eval.model.lm import GksArrowLM
    from gks_eval.training.jobs import TrainingPlan

__all__ = ["show_accuracy"]

_ENDS = 3  # layers shown from each end


def show_accuracy(
    lm: GksArrowLM,
    settings: Mapping[str, Setting],
    plan: TrainingPlan,
    limit: int | None,
    output: Path | None,
    every_layer: bool,
) -> None:
    """Route the held-out rows under every setting; print a table and write the record.

    Raises:
        UsageError: A setting does not choose among experts.
        DataError: The recipe's data have a fault.
    """
    from gks_eval.cli._bar import progress_bar
    from gks_eval.model.routing_accuracy import observe_accuracy
    from gks_eval.training.held_out import held_out_rows
    from gks_eval.util.files import write_text
    from gks_eval.util.schemas import ACCURACY
    from gks_eval.util.versions import versions

    library = lm.library
    assert library is not None
    experts = list(library.experts)
    rows = held_out_rows(plan, experts, lm.tokenizer, limit)
    total = len(settings) * sum(map(len, rows.values()))
    with progress_bar("routing", total) as advance:
        found = {
            label: observe_accuracy(lm, setting, rows, advance)
            for label, setting in settings.items()
        }
    record: dict[str, Any] = {
        "schema": ACCURACY,
        "library": library.name,
        "experts": experts,
        "chance": 1 / len(experts),
        "rows": {name: len(group) for name, group in rows.items()},
        "tokens": {name: sum(map(len, group)) for name, group in rows.items()},
        "settings": {label: vars(one) for label, one in found.items()},
        "provenance": {
            "content_hash": library.content_hash,
            "recipe": plan.recipe_hash,
            **versions(),
        },
    }
    if output is not None:
        write_text(output, json.dumps(record, indent=1) + "\n")
    _print(record, every_layer)


def _print(record: Mapping[str, Any], every_layer: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from gks_eval.grid.table import print_whole

    settings, rows = record["settings"], sum(record["rows"].values())
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        "Share of held-out text that goes to its own expert, in percent, mean over experts: "
        f"{len(record['rows'])} experts, {rows} rows, {sum(record['tokens'].values())} tokens. "
        "Sequences by majority of their tokens. Experts with equal coefficients share a token."
    )
    for name in ("setting", "tokens", "sequences"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for label, one in settings.items():
        table.add_row(escape(label), _percent(one["all_tokens"]), _percent(one["all_sequences"]))
    table.add_section()
    table.add_row("chance", *[_percent(record["chance"])] * 2)
    print_whole(table)
    layers = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    layers.caption = "By layer: tokens / sequences, in percent."
    layers.add_column("layer", no_wrap=True)
    for label in settings:
        layers.add_column(escape(label), justify="right")
    names = sorted({name for one in settings.values() for name in one["layers"]}, key=_by_depth)
    for name in _shown(names, every_layer):
        cells = (_cell(one, name) for one in settings.values())
        layers.add_row(name, *(cells if name in names else ("" for _ in settings)))
    print_whole(layers)


def _shown(names: Sequence[str], every_layer: bool) -> list[str]:
    if every_layer or len(names) <= 2 * _ENDS + 1:
        return list(names)
    left = len(names) - 2 * _ENDS
    return [*names[:_ENDS], f"({left} more: --every-layer)", *names[-_ENDS:]]


def _by_depth(layer: str) -> list[tuple[int, str]]:
    # Layer 2 comes before layer 10.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]


def _cell(one: Mapping[str, Any], layer: str) -> str:
    if layer not in one["layers"]:
        return "-"
    index = one["layers"].index(layer)
    return f"{_percent(one['tokens'][index])} / {_percent(one['sequences'][index])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
