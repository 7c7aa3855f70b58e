"""Geometry of a library: the norms of its adapters' updates and the angles between them.

These numbers test the claim that subtracting general knowledge makes experts more distinct. All are
computed from the factors, see `gks_eval.method.batches`; no dW is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.load import Library
from gks_eval.library.starts import StartsTally
from gks_eval.method.batches import inner_products, squared_norms
from gks_eval.method.declaration import TARGET
from gks_eval.method.lora import LoraPair, average_factors, inner_product, stack
from gks_eval.method.registry import RULES
from gks_eval.method.routers.prototypes import prototypes
from gks_eval.method.tied import joined
from gks_eval.util.schemas import GEOMETRY
from gks_eval.util.versions import versions

__all__ = ["Summary", "library_geometry", "summary"]


def library_geometry(
    library: Library,
    languages: Sequence[str] | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Measure a library, as plain JSON values of the schema `GEOMETRY`.

    Args:
        library: The adapters.
        languages: The general adapters whose mean is subtracted; all by default.
        progress: Called after every layer.

    Returns:
        Frobenius norms of dW and of its residual by rule, for every expert and layer; cosines of
        updates, over all layers taken as one vector; mean |prototype . prototype| over layers;
        the distance of the residual of ``factors`` from that of ``delta``, relative to the latter;
        what `gks_eval.library.starts.Starts.record` returns for the rules on factors; and the norm
        of the mixture of all E experts with equal weights, per layer and combine: of
        ``s mean(B_i) mean(A_i)`` for ``factors`` (what the uniform router applies), which is small
        if each A has its own random start, and of ``mean(dW_i)`` for ``outputs``.
        Rules and combines that the adapters' ranks, scalings or layers do not allow are left out.
        At a layer that an adapter lacks, its update and its prototype are zero. Tied layers count
        with their common prototype, once each.

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
    mixed: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    starts = {rule: StartsTally(experts, rule) for rule in rules if RULES.get(rule).equal_factors}
    crossed = torch.zeros(size, len(library.general), dtype=torch.float64)
    general_squares = torch.zeros(len(library.general), dtype=torch.float64)

    for module in library.modules:
        tasks = [library.pair(adapter, module) for adapter in library.experts.values()]
        generals = [library.pair(adapter, module) for adapter in library.general.values()]
        subtracted = [library.pair(library.general[name], module) for name in chosen]
        residuals = _residuals(library, module, chosen, rules)
        prototyped = _prototyped(library, module, chosen, rules) or residuals
        for rule, tally in starts.items():
            tally(tasks, subtracted, residuals[rule])
        for variant, pairs in residuals.items():
            table = inner_products(pairs, pairs)
            gram[variant] += table
            for name, square in zip(experts, table.diagonal().tolist(), strict=True):
                norms[variant][name].append(math.sqrt(max(0.0, square)))
            for combine, norm in _even_mixture(pairs, table).items():
                mixed[variant].setdefault(combine, []).append(norm)
            directions = prototypes(prototyped[variant]).double()
            similarity[variant] += (directions @ directions.T).abs() / len(library.modules)
        crossed += inner_products(tasks, generals)
        general_squares += squared_norms(generals)
        if "factors" in residuals and "delta" in residuals:
            for name, task, by_factors, exact in zip(
                experts, tasks, residuals["factors"], residuals["delta"], strict=True
            ):
                if not task.missing:
                    distance[name].append(_relative_distance(by_factors, exact))
        if progress is not None:
            progress()

    own = gram["none"].diagonal().clamp_min(0).sqrt()
    return {
        "schema": GEOMETRY,
        "library": library.name,
        "experts": experts,
        "general": list(library.general),
        "layers": list(library.modules),
        "norm": norms["none"],
        "residual_norm": {rule: norms[rule] for rule in rules},
        "mixture_norm": {
            variant: {
                combine: found
                for combine, found in norms_by.items()
                if len(found) == len(library.modules)  # else some layer does not allow this combine
            }
            for variant, norms_by in mixed.items()
        },
        "starts": {rule: tally.result().record() for rule, tally in starts.items()},
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


def _residuals(
    library: Library, module: str, languages: Sequence[str], rules: Sequence[str]
) -> dict[str, list[LoraPair]]:
    """Return the experts at one layer, ``none``, and their residuals by rule."""
    tasks = [library.pair(adapter, module) for adapter in library.experts.values()]
    subtracted = [library.pair(library.general[name], module) for name in languages]
    made = {rule: [RULES.get(rule)(pair, subtracted) for pair in tasks] for rule in rules}
    return {"none": tasks, **made}


def _prototyped(
    library: Library, module: str, languages: Sequence[str], rules: Sequence[str]
) -> dict[str, list[LoraPair]] | None:
    """Return the joined residuals of layers that share prototypes; None if this has its own."""
    group = library.tied.get(module)
    if group is None:
        return None
    layers = [_residuals(library, name, languages, rules) for name in group.layers]
    return {
        variant: [
            joined(group.op, pairs)
            for pairs in zip(*(layer[variant] for layer in layers), strict=True)
        ]
        for variant in ("none", *rules)
    }


def _possible_rules(library: Library, languages: Sequence[str]) -> list[str]:
    possible: list[str] = []
    for rule in RULES.names():
        if RULES.get(rule).needs == TARGET:  # the last adapter is not subtracted
            continue
        try:
            for module in library.modules if languages else ():
                subtracted = [library.pair(library.general[name], module) for name in languages]
                for adapter in library.experts.values():
                    RULES.get(rule)(library.pair(adapter, module), subtracted)
        except CompatibilityError:
            continue
        if languages:
            possible.append(rule)
    return possible


def _even_mixture(pairs: Sequence[LoraPair], products: torch.Tensor) -> dict[str, float]:
    # Norm of the mixture with equal weights, by combine; `products` holds all inner products.
    norms = {"outputs": math.sqrt(max(0.0, float(products.mean())))}
    try:
        mean = average_factors(pairs)
    except CompatibilityError:
        return norms
    return {"factors": math.sqrt(max(0.0, inner_product(mean, mean))), **norms}


def _relative_distance(one: LoraPair, other: LoraPair) -> float:
    difference = stack([one, other], [1.0, -1.0])
    scale = inner_product(other, other)
    return math.sqrt(max(0.0, inner_product(difference, difference)) / scale) if scale > 0 else 0.0


def _cosines(table: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> list[list[float]]:
    # A zero update has no direction; its cosine with any other is reported as 0.
    scale = (rows.unsqueeze(1) * columns.unsqueeze(0)).clamp_min(1e-300)
    cosines: list[list[float]] = (table / scale).clamp(-1, 1).tolist()
    return cosines


def _mean_off_diagonal(table: Sequence[Sequence[float]]) -> float:
    # Mean of a square table without its diagonal; 0 for a single row.
    size = len(table)
    if size < 2:
        return 0.0
    total = sum(sum(row) - row[n] for n, row in enumerate(table))
    return total / (size * (size - 1))


@dataclass(frozen=True)
class Summary:
    """A library's geometry under one rule, over all layers.

    Attributes:
        rule: How the residuals were made; ``none`` for the experts as they are.
        norm: |dW| over all layers, mean over experts.
        left: |dW| relative to the same expert's before subtraction, mean over experts.
        mixture: Norm over all layers of an even mixture of all experts, by combine.
        cosine: Cosine of the updates, mean over pairs of different experts.
        prototypes: |cosine| of the prototypes, mean over the same pairs and the layers.
    """

    rule: str
    norm: float
    left: float
    mixture: dict[str, float]
    cosine: float
    prototypes: float


def summary(geometry: Mapping[str, Any]) -> list[Summary]:
    """Return the geometry by rule, ``none`` first.

    Args:
        geometry: What `library_geometry` returned.
    """
    rows = []
    for rule, cosines in geometry["cosine_experts"].items():
        norms = geometry["norm"] if rule == "none" else geometry["residual_norm"][rule]
        sizes = [math.hypot(*layers) for layers in norms.values()]
        whole = [math.hypot(*layers) for layers in geometry["norm"].values()]
        shares = [size / own if own else 1.0 for size, own in zip(sizes, whole, strict=True)]
        mixed = geometry["mixture_norm"][rule].items()
        rows.append(
            Summary(
                rule,
                sum(sizes) / len(sizes),
                sum(shares) / len(shares),
                {combine: math.hypot(*layers) for combine, layers in mixed},
                _mean_off_diagonal(cosines),
                _mean_off_diagonal(geometry["prototype_similarity"][rule]),
            )
        )
    return rows
