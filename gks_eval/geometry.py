"""How a library's adapters lie to each other: norms and angles of their updates.

The numbers behind the claim that subtracting general knowledge makes experts more distinct.
Everything is computed from the factors: ``<dW_1, dW_2> = s_1 s_2 sum((B_1^T B_2) * (A_1 A_2^T))``,
so no update is ever written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args

import torch

from gks_eval.arrow import prototypes
from gks_eval.config.setting import Rule
from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library import Library
from gks_eval.lora import LoraPair, stack
from gks_eval.subtract import subtract
from gks_eval.versions import versions

__all__ = ["SCHEMA", "inner_product", "library_geometry", "summary"]

SCHEMA: Final = "gks_eval.geometry/1"


def inner_product(one: LoraPair, other: LoraPair) -> float:
    """Return the Frobenius inner product of two updates of one layer, in float64."""
    write = one.B.double().T @ other.B.double()
    read = one.A.double() @ other.A.double().T
    return float(one.scaling * other.scaling * (write * read).sum())


def library_geometry(
    library: Library,
    languages: Sequence[str] | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Measure a library, as plain JSON values of the schema ``gks_eval.geometry/1``.

    Args:
        library: The adapters.
        languages: The general adapters whose mean is subtracted; all by default.
        progress: Called after every layer.

    Returns:
        Frobenius norms of dW and of its residual by rule, for every expert and layer; cosines of
        updates, over all layers taken as one vector; mean |prototype . prototype| over layers;
        and how far the residual of ``factors`` is from that of ``delta``, relative to the latter.
        Rules that the adapters' ranks or scalings do not allow are left out.

    Raises:
        UsageError: A language is unknown.
    """
    chosen = list(library.general) if languages is None else list(languages)
    for name in chosen:
        if name not in library.general:
            known = ", ".join(library.general) or "none"
            where = f"library {library.name}"
            raise UsageError(f"{where} has no general adapter {name}; known: {known}.")
    rules = _possible_rules(library, chosen)
    variants: list[str] = ["none", *rules]
    experts = list(library.experts)
    size = len(experts)
    gram = {variant: torch.zeros(size, size, dtype=torch.float64) for variant in variants}
    similarity = {variant: torch.zeros(size, size, dtype=torch.float64) for variant in variants}
    norms: dict[str, dict[str, list[float]]] = {
        variant: {name: [] for name in experts} for variant in variants
    }
    distance: dict[str, list[float]] = {name: [] for name in experts}
    crossed = torch.zeros(size, len(library.general), dtype=torch.float64)
    general_squares = torch.zeros(len(library.general), dtype=torch.float64)

    for module in library.modules:
        tasks = [adapter.pairs[module] for adapter in library.experts.values()]
        generals = [adapter.pairs[module] for adapter in library.general.values()]
        subtracted = [library.general[name].pairs[module] for name in chosen]
        residuals: dict[str, list[LoraPair]] = {"none": tasks}
        for rule in rules:
            residuals[rule] = [subtract(pair, subtracted, rule) for pair in tasks]
        for variant, pairs in residuals.items():
            table = torch.tensor(
                [[inner_product(a, b) for b in pairs] for a in pairs], dtype=torch.float64
            )
            gram[variant] += table
            for name, square in zip(experts, table.diagonal().tolist(), strict=True):
                norms[variant][name].append(math.sqrt(max(0.0, square)))
            directions = prototypes(pairs).double()
            similarity[variant] += (directions @ directions.T).abs() / len(library.modules)
        crossed += torch.tensor(
            [[inner_product(t, g) for g in generals] for t in tasks], dtype=torch.float64
        ).reshape(crossed.shape)
        general_squares += torch.tensor(
            [inner_product(g, g) for g in generals], dtype=torch.float64
        )
        if "factors" in residuals and "delta" in residuals:
            for name, by_factors, exact in zip(
                experts, residuals["factors"], residuals["delta"], strict=True
            ):
                distance[name].append(_relative_distance(by_factors, exact))
        if progress is not None:
            progress()

    own = gram["none"].diagonal().clamp_min(0).sqrt()
    return {
        "schema": SCHEMA,
        "library": library.name,
        "experts": experts,
        "general": list(library.general),
        "layers": list(library.modules),
        "norm": norms["none"],
        "residual_norm": {rule: norms[rule] for rule in rules},
        "cosine_general": _cosines(crossed, own, general_squares.clamp_min(0).sqrt()),
        "cosine_experts": {
            variant: _cosines(table, *[table.diagonal().clamp_min(0).sqrt()] * 2)
            for variant, table in gram.items()
        },
        "prototype_similarity": {
            variant: table.clamp(0, 1).tolist() for variant, table in similarity.items()
        },
        "rule_distance": {name: values for name, values in distance.items() if values},
        "provenance": {
            "content_hash": library.content_hash,
            "subtracted": "+".join(chosen) or "none",
            **versions(),
        },
    }


def _possible_rules(library: Library, languages: Sequence[str]) -> list[Rule]:
    possible: list[Rule] = []
    for rule in get_args(Rule):
        try:
            for module in library.modules if languages else ():
                subtracted = [library.general[name].pairs[module] for name in languages]
                for adapter in library.experts.values():
                    subtract(adapter.pairs[module], subtracted, rule)
        except CompatibilityError:
            continue
        if languages:
            possible.append(rule)
    return possible


def _relative_distance(one: LoraPair, other: LoraPair) -> float:
    difference = stack([one, other], [1.0, -1.0])
    scale = inner_product(other, other)
    return math.sqrt(max(0.0, inner_product(difference, difference)) / scale) if scale > 0 else 0.0


def _cosines(table: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> list[list[float]]:
    # A zero update has no direction; its cosine with everything is given as 0.
    scale = (rows.unsqueeze(1) * columns.unsqueeze(0)).clamp_min(1e-300)
    cosines: list[list[float]] = (table / scale).clamp(-1, 1).tolist()
    return cosines


def _mean_off_diagonal(table: Sequence[Sequence[float]]) -> float:
    # Of a square table; 0 where there is a single row.
    size = len(table)
    if size < 2:
        return 0.0
    total = sum(sum(row) - row[n] for n, row in enumerate(table))
    return total / (size * (size - 1))


def summary(geometry: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Return (variant, mean |dW|, mean cosine, mean prototype similarity) over experts and pairs.

    Args:
        geometry: What `library_geometry` returned.
    """
    rows = []
    for variant, cosines in geometry["cosine_experts"].items():
        norms = geometry["norm"] if variant == "none" else geometry["residual_norm"][variant]
        sizes = [math.sqrt(sum(x * x for x in layers)) for layers in norms.values()]
        rows.append(
            (
                variant,
                sum(sizes) / len(sizes),
                _mean_off_diagonal(cosines),
                _mean_off_diagonal(geometry["prototype_similarity"][variant]),
            )
        )
    return rows
