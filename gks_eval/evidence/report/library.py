"""Routing shares and library geometry for the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from gks_eval.evidence.accuracy import RoutingAccuracy
from gks_eval.evidence.observed import LibraryGeometry, RoutingShares
from gks_eval.evidence.report.folds import sheet
from gks_eval.evidence.report.heat import Heat, heat
from gks_eval.evidence.tables.content import Table

__all__ = ["accuracy_part", "geometry_part", "routing_heat", "routing_part"]


def routing_heat(routes: RoutingShares) -> tuple[Heat, Heat] | None:
    """Return (task x expert, layer x expert) of the mean coefficients; None if there are none."""
    import numpy as np

    names = list(routes.tasks)
    if not names or not routes.layers or not routes.experts:
        return None
    stack = np.stack([np.array(task.mean_coefficient) for task in routes.tasks.values()])
    weights = np.array([max(1, task.tokens) for task in routes.tasks.values()], dtype=float)
    by_layer = np.tensordot(weights / weights.sum(), stack, axes=1)
    order = sorted(range(len(routes.layers)), key=lambda i: _by_depth(routes.layers[i]))
    layers = _without_shared_start([routes.layers[i] for i in order])
    label = "mean coefficient"
    by_task = heat(stack.mean(axis=1), routes.experts, names, label)
    return by_task, heat(by_layer[order], routes.experts, layers, label)


def _by_depth(layer: str) -> list[tuple[int, str]]:
    # Layer 2 comes before layer 10.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]


def _without_shared_start(names: list[str]) -> list[str]:
    """Drop the dotted prefix that all names share, such as ``model.layers.``."""
    parts = [name.split(".") for name in names]
    columns = zip(*(path[:-1] for path in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return [".".join(path[shared if len(names) > 1 else 0 :]) for path in parts]


def routing_part(routes: RoutingShares) -> dict[str, Any]:
    """Return one setting's table and heat maps."""
    rows = []
    for name, task in routes.tasks.items():
        layers = max(1, len(task.mean_coefficient))
        means = [sum(column) / layers for column in zip(*task.mean_coefficient, strict=True)]
        entropy = sum(task.entropy) / layers
        rows.append([name, str(task.tokens), *(f"{mean:.4f}" for mean in means), f"{entropy:.3f}"])
    columns = ["task", "tokens", *routes.experts, "entropy (nats)"]
    table = Table("Mean coefficients", columns, rows, {}, [])
    return {"routes": routes, "plots": routing_heat(routes), "table": sheet(table)}


def accuracy_part(found: RoutingAccuracy) -> Any:
    """Return the table of one library's routing accuracy."""
    shares = {label: (one.all_tokens, one.all_sequences) for label, one in found.settings.items()}
    shares["chance"] = found.chance, found.chance
    rows = [[label, *(f"{100 * share:.1f}" for share in pair)] for label, pair in shares.items()]
    note = (
        f"Share of held-out text that goes to its own expert, in percent, mean over "
        f"{len(found.experts)} experts; {sum(found.rows.values())} rows. Sequences by majority of "
        "their tokens in all layers"
    )
    title = f"Routing accuracy, {found.library}"
    return sheet(Table(title, ["setting", "tokens", "sequences"], rows, {}, [note]))


def geometry_part(geometry: LibraryGeometry) -> dict[str, Any]:
    """Return one library's table and heat maps."""
    rules = list(geometry.residual_norm)

    def mean(values: Sequence[float] | None) -> str:
        return f"{sum(values) / len(values):.4f}" if values else "–"

    rows = [
        [
            expert,
            mean(geometry.norm.get(expert)),
            *(mean(geometry.residual_norm[rule].get(expert)) for rule in rules),
            *(f"{cosine:.3f}" for cosine in geometry.cosine_general[index]),
            mean(geometry.rule_distance.get(expert)),
        ]
        for index, expert in enumerate(geometry.experts)
    ]
    columns = ["expert", "|dW|", *(f"|residual|, {rule}" for rule in rules)]
    columns += [*(f"cosine with {name}" for name in geometry.general), "|factors − delta|/|delta|"]
    notes = [f"Norms are means over {len(geometry.layers)} layers."]
    plots = [
        (rule, heat(cosines, geometry.experts, geometry.experts, "cosine", signed=True))
        for rule, cosines in geometry.cosine_experts.items()
        if cosines
    ]
    table = Table("Norms and cosines", columns, rows, {}, notes)
    return {"geometry": geometry, "table": sheet(table), "plots": plots}
