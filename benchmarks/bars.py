"""Goals and measured values, as pure functions of the rows.

Most goals are for float32 on a CPU with 10 experts of rank 4. Those of the rows `full` are for one
H100 or H200. Other runs are compared with them too. They do not change the exit status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.record import (
    Bar,
    Evaluation,
    ExpertsRow,
    FullModel,
    GenerationRow,
    LayerRow,
    LibraryRow,
    ModelRow,
    RouterRow,
    Startup,
)

__all__ = ["bars_of"]

LAYER_TOKENS = 512
LAYER_SPEED_UP = {(3072, 9216): 15.0, (3072, 3072): 10.0}
LAYER_MEMORY = 8.0
ROUTERS = ("spectr", "norm")
ROUTER_RANK = 4
ROUTER_COST = 1.15
EXPERTS_COST = {
    ("3072->9216", 64): 1.10,
    ("3072->9216", 256): 1.25,
    ("3072->9216", 1000): 1.6,
    ("transformer layer, width 3072", 10): 1.02,
    ("transformer layer, width 3072", 64): 1.03,
    ("transformer layer, width 3072", 256): 1.10,
    ("transformer layer, width 3072", 1000): 1.30,
}
PLAN_COST = 1.10
SLICE_WIDTH = "Phi-3, width 3072"
SLICE_COST = {"prefill": 1.02, "decode": 1.02}
SMALL = "smollm2-135m"
SMALL_COST = {"prefill": 1.05, "decode": 1.10}
MIX_SPEED_UP = 4.0
SET_SPEED_UP = 1.0
FORWARD_SHARE = 0.85
EQUAL_PREDICTIONS = 0.999
STARTUP_SECONDS = 0.5
GENERATION_COST = 1.0
LIBRARY_EXPERTS = 1000
LIBRARY_SECONDS = 60.0
FULL_COST = {"prefill": 1.05, "decode, captured": 1.15}
TABLE_MINUTES = 30.0


def bars_of(
    layer: Sequence[LayerRow] = (),
    router: Sequence[RouterRow] = (),
    experts: Sequence[ExpertsRow] = (),
    model: Sequence[ModelRow] = (),
    evaluation: Sequence[Evaluation] = (),
    startup: Startup | None = None,
    generation: Sequence[GenerationRow] = (),
    library: Sequence[LibraryRow] = (),
    full: Sequence[FullModel] = (),
) -> list[Bar]:
    """Return the goals that these rows have values for."""
    found = [*_layer(layer), *_router(router), *_experts(experts), *_model(model)]
    for collection in evaluation:
        found += _evaluation(collection)
    if startup is not None:
        what = "start-up: seconds more than --model hf"
        found.append(_at_most(what, startup.difference, STARTUP_SECONDS))
    return [*found, *_generation(generation), *_library(library), *_full(full)]


def _at_least(what: str, measured: float, goal: float) -> Bar:
    return Bar(what=what, wanted=f"at least {goal:g}", measured=measured, met=measured >= goal)


def _at_most(what: str, measured: float, goal: float) -> Bar:
    return Bar(what=what, wanted=f"at most {goal:g}", measured=measured, met=measured <= goal)


def _layer(rows: Sequence[LayerRow]) -> Iterable[Bar]:
    for row in rows:
        goal = LAYER_SPEED_UP.get((row.width_in, row.width_out))
        if row.tokens != LAYER_TOKENS or goal is None:
            continue
        name = f"layer {row.width_in}->{row.width_out}, {row.tokens} tokens"
        yield _at_least(
            f"{name}: times faster than PEFT", row.peft_over_routed.median_of_rounds, goal
        )
        share = row.peak_bytes["peft"] / row.peak_bytes["routed"]
        yield _at_least(f"{name}: PEFT's peak memory over ours", share, LAYER_MEMORY)


def _router(rows: Sequence[RouterRow]) -> Iterable[Bar]:
    for row in rows:
        for name in ROUTERS if row.rank == ROUTER_RANK else ():
            what = f"{name} at {row.width_in}->{row.width_out}, {row.rule}: times arrow's update"
            yield _at_most(what, row.over_arrow[name].median_of_rounds, ROUTER_COST)


def _experts(rows: Sequence[ExpertsRow]) -> Iterable[Bar]:
    for row in rows:
        name = f"{row.layer}, {row.experts} experts, {row.tokens} tokens"
        goal = EXPERTS_COST.get((row.layer, row.experts))
        if goal is not None and row.tokens == LAYER_TOKENS:
            yield _at_most(f"{name}: times the base", row.routed_over_base.median_of_rounds, goal)
        if row.plan_over_fastest is not None:
            cost = row.plan_over_fastest.median_of_rounds
            yield _at_most(f"{name}: times the fastest plan", cost, PLAN_COST)


def _model(rows: Sequence[ModelRow]) -> Iterable[Bar]:
    for row in rows:
        for part, name, goals in (
            (SLICE_WIDTH, "Phi-3's width", SLICE_COST),
            (SMALL, "SmolLM2-135M", SMALL_COST),
        ):
            if part in row.model:
                what = f"{name}, {row.phase} {row.batch}x{row.tokens}: times the base's forward"
                yield _at_most(what, row.routed_over_base.median_of_rounds, goals[row.phase])


def _evaluation(found: Evaluation) -> Iterable[Bar]:
    name = f"evaluation {found.name}"
    if found.name == "mix":
        speed_up = found.together.peft_over_packed.median_of_rounds
        yield _at_least(f"{name}: times faster than PEFT's best", speed_up, MIX_SPEED_UP)
    slowest = min(found.alone, key=lambda one: found.alone[one].peft_over_packed.median_of_rounds)
    speed_up = found.alone[slowest].peft_over_packed.median_of_rounds
    yield _at_least(
        f"{name}: speed-up on its slowest set, {slowest.removeprefix('gks_')}",
        speed_up,
        SET_SPEED_UP,
    )
    yield _at_least(f"{name}: share of the best plain forward", found.forward.share, FORWARD_SHARE)
    packed = found.agreement["packed"]
    yield _at_least(
        f"{name}: share of PEFT's predictions", packed.equal / packed.items, EQUAL_PREDICTIONS
    )


def _generation(rows: Sequence[GenerationRow]) -> Iterable[Bar]:
    for row in rows:
        cost = row.over_hf["router=none"].median_of_rounds
        name = f"generation without adapters, {row.kind}"
        yield _at_most(f"{name}: times hf", cost, GENERATION_COST)
        yield _at_least(f"{name}: share of hf's texts", row.equal / row.prompts, 1.0)


def _library(rows: Sequence[LibraryRow]) -> Iterable[Bar]:
    for row in rows:
        if row.experts == LIBRARY_EXPERTS:
            what = f"{row.base}, {row.experts} adapters: seconds of loading"
            yield _at_most(what, row.load, LIBRARY_SECONDS)


def _full(rows: Sequence[FullModel]) -> Iterable[Bar]:
    for row in rows:
        name = f"{row.layers} layers of width {row.hidden}, {row.weights}"
        for forward in row.forwards:
            goal = FULL_COST.get(forward.phase)
            if goal is not None:
                what = f"{name}, {forward.phase} {forward.batch}x{forward.tokens}: times the base"
                yield _at_most(what, forward.routed_over_base.median_of_rounds, goal)
        yield _at_most(f"{name}: minutes of Table 1", row.evaluation.table_minutes, TABLE_MINUTES)
