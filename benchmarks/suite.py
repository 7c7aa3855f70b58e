"""A whole run: the requested rows, in order, in one record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks.bars import bars_of
from benchmarks.machine import hardware
from benchmarks.record import Record
from benchmarks.request import BenchmarkRequest
from gks_eval.errors import ResourceError
from gks_eval.util.versions import versions

__all__ = ["SEED", "run_bench"]

SEED = 0


def run_bench(request: BenchmarkRequest, report: Callable[[str], None]) -> Record:
    """Run the benchmark.

    Args:
        request: What to run.
        report: Called with progress messages.

    Raises:
        UsageError: The request is invalid.
        ResourceError: Memory is full, or a process failed.
        GksError: A library, base or data set cannot be read.
    """
    request.check()
    date, start_time = datetime.now(timezone.utc), time.monotonic()
    sizes = request.sizes()
    common: dict[str, Any] = {"device": request.device, "seed": SEED, "report": report}
    how = common | {"rounds": request.repeats}
    dtype = getattr(torch, request.dtype)
    listed = ("layer", "router", "experts", "model", "evaluation", "generation", "library", "full")
    found: dict[str, Any] = {name: [] for name in listed}
    with _out_of_memory(request.device):
        if "layer" in request.rows:
            from benchmarks.layer import layer_rows

            found["layer"] = layer_rows(sizes, dtype=dtype, **how)
        if "router" in request.rows:
            from benchmarks.routers import router_rows

            found["router"] = router_rows(sizes, dtype=dtype, **how)
        if "experts" in request.rows:
            from benchmarks.experts import expert_rows

            found["experts"] = expert_rows(sizes, dtype=dtype, **how)
        if "model" in request.rows:
            from benchmarks.whole_model import slice_rows

            found["model"] = slice_rows(sizes, dtype=dtype, **how)
        if "full" in request.rows:
            from benchmarks.full_model import full_model_rows

            found["full"] = full_model_rows(sizes, **how)
        if {"model", "evaluation", "growth", "generation"} & set(request.rows):
            _on_subject(request, found, how)
    if "startup" in request.rows:
        from benchmarks.startup import startup_row

        found["startup"] = startup_row(warm_up=not request.quick, **how)
    if "library" in request.rows:
        from benchmarks.library import library_rows

        found["library"] = library_rows(
            sizes, items=request.items, tiny=request.quick, dtype=request.dtype, **common
        )
    bars = bars_of(**{name: found[name] for name in found if name != "growth"})
    return Record(
        arguments=asdict(request),
        date=date.isoformat(timespec="seconds"),
        minutes=(time.monotonic() - start_time) / 60,
        seed=SEED,
        versions=versions(),
        hardware=hardware(request.device),
        bars=tuple(bars),
        **found,
    )


def _on_subject(request: BenchmarkRequest, found: dict[str, Any], how: dict[str, Any]) -> None:
    from benchmarks.subject import open_subject

    sizes = request.sizes()
    dtype = getattr(torch, request.dtype)
    fewer = how | {"rounds": max(1, request.repeats // 3)}
    sets = _sets(request) if "evaluation" in request.rows else {}
    with open_subject(
        request.library, tiny=request.quick, device=request.device, dtype=dtype, seed=SEED
    ) as subject:
        if "model" in request.rows:
            from benchmarks.whole_model import subject_rows

            found["model"] += subject_rows(subject, sizes, **how)
        if "generation" in request.rows:
            from benchmarks.generation import generation_rows

            found["generation"] = generation_rows(subject, sizes, **fewer)
        if not {"evaluation", "growth"} & set(request.rows):
            return
        from benchmarks.evaluation import evaluate_collection, open_scorers
        from benchmarks.growth import growth_rows

        scorers = open_scorers(subject)
        for name, collection in sets.items():
            found["evaluation"].append(
                evaluate_collection(name, collection, subject, scorers, sizes, **fewer)
            )
        if "growth" in request.rows:
            found["growth"] = growth_rows(subject, scorers.ours, sizes, dtype=dtype, **fewer)


def _sets(request: BenchmarkRequest) -> Any:
    # Before the model is loaded, so that missing data are reported at once.
    from benchmarks.evaluation_items import collections

    return collections(request.items)


@contextlib.contextmanager
def _out_of_memory(device: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        signs = ("out of memory", "can't allocate memory", "not enough memory")
        if not any(sign in str(error).lower() for sign in signs):
            raise
        raise ResourceError(
            f"{device} has too little memory for this row; choose other rows with --rows."
        ) from error
