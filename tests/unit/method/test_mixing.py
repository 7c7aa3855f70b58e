"""Every plan computes the same update: against all experts densely, and against plain loops."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from common import random_pair, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from gks_eval.method.build import build
from gks_eval.method.choice import Choice
from gks_eval.method.contexts import Contexts
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.mixing import chosen
from gks_eval.method.mixing.plan import (
    GATHERED,
    GATHERED_16,
    SPARSE,
    Plan,
    Rates,
    Size,
    costs,
    plan_of,
)
from gks_eval.method.reference import reference_update
from gks_eval.method.routed import add_update, routed_update
from gks_eval.method.setting import Setting
from gks_eval.method.weights import RoutedWeights

WIDTH_IN, WIDTH_OUT = 16, 24
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
SOME: list[Plan] = ["chosen", "write chosen"]


def plans(weights: RoutedWeights) -> list[Plan]:
    assert weights.sparse is not None
    return [plan for plan in SOME if plan != "chosen" or not weights.sparse.reads_inner]


def dense(update: tuple[torch.Tensor, torch.Tensor | Choice], experts: int) -> torch.Tensor:
    found = update[1]
    return found.dense(experts) if isinstance(found, Choice) else found


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    ranks = draw(st.lists(st.integers(1, 5), min_size=2, max_size=9))
    if draw(st.booleans()):
        ranks = [ranks[0]] * len(ranks)
    pairs = [random_pair(rank, seed=n) for n, rank in enumerate(ranks)]
    combine = "outputs"
    if len({*ranks}) == 1 and draw(st.booleans()):
        combine = "factors"
    else:
        for n in draw(st.sets(st.integers(0, len(ranks) - 1), max_size=len(ranks) - 1)):
            pairs[n] = no_update((WIDTH_OUT, WIDTH_IN))
    general = [random_pair(3, seed=50 + n) for n in range(draw(st.integers(0, 2)))]
    router = draw(st.sampled_from(["arrow", "spectr", "norm", "lag", "random"]))
    top_k = draw(st.integers(1, len(ranks) - 1))
    setting = Setting(
        router=router,
        rule="delta",
        combine=combine,
        subtract=("avg",) if general else (),
        top_k=top_k,
        **({"shortlist": max(top_k, 3)} if router == "lag" else {}),
    )
    return {"experts": pairs, "general": general, "setting": setting}


@settings(max_examples=60, deadline=None)
@given(
    layer=layers(),
    tokens=st.sampled_from([1, 2, 65]),
    dtype=st.sampled_from([*TOLERANCE]),
    seed=st.integers(0, 9),
    built_in=st.booleans(),
    into=st.booleans(),
)
def test_plans_agree(
    layer: dict[str, Any],
    tokens: int,
    dtype: torch.dtype,
    seed: int,
    built_in: bool,
    into: bool,
) -> None:
    x = torch.randn(tokens, WIDTH_IN, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weights = build(**layer, dtype=dtype)
    start = torch.ones(tokens, WIDTH_OUT, dtype=dtype) if into else None
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if not built_in:
            patch.setattr(chosen, "_built_in", lambda: False)
        expected = add_update(x, weights, None if start is None else start.clone(), plan="all")
        for plan in plans(weights):
            found = add_update(x, weights, None if start is None else start.clone(), plan=plan)
            assert found[0].dtype == dtype
            assert relative_error(found[0], expected[0]) < TOLERANCE[dtype], plan
            torch.testing.assert_close(
                dense(found, weights.experts), dense(expected, weights.experts)
            )


@settings(max_examples=25, deadline=None)
@given(layer=layers(), seed=st.integers(0, 9))
def test_plans_are_the_plain_loops(layer: dict[str, Any], seed: int) -> None:
    x = torch.randn(4, WIDTH_IN, generator=torch.Generator().manual_seed(seed))
    weights = build(**layer, dtype=torch.float32)
    slow, shares = reference_update(x, layer["experts"], layer["general"], layer["setting"])
    with torch.no_grad():
        for plan in plans(weights):
            found = add_update(x, weights, plan=plan)
            clear = (dense(found, weights.experts) - shares).abs().amax(1) < 1e-4
            assert relative_error(found[0][clear], slow[clear]) < 1e-4, plan


def many(
    count: int, width_in: int = WIDTH_IN, dtype: torch.dtype = torch.float32, **arguments: Any
) -> tuple[RoutedWeights, list[LoraPair], Setting]:
    pairs = [random_pair(2, seed=n, width_in=width_in) for n in range(count)]
    setting = Setting(rule="delta", combine="outputs", subtract=(), **arguments)
    return build(pairs, [], setting, dtype=dtype), pairs, setting


def rates_here() -> Rates:
    return SPARSE if chosen.has_sparse_products(torch.device("cpu"), torch.float32) else GATHERED


def test_many_experts_are_not_all_read() -> None:
    few, _, _ = many(4, 64)
    lots, _, _ = many(600, 64)
    every, _, _ = many(600, 64, top_k=-1)
    by_norm, _, _ = many(600, 64, router="norm")
    assert plan_of(512, few) == "all"
    assert plan_of(512, lots) == "chosen"
    assert plan_of(512, every) == "all"
    assert plan_of(512, by_norm) == "write chosen"
    assert plan_of(0, lots) == "all"
    for tokens in range(1, 200, 7):
        naive = costs(Size(tokens, 1200, 2 * 3, 64, WIDTH_OUT), rates_here())
        assert plan_of(tokens, lots) == min(naive, key=lambda plan: naive[plan])
    assert {plan_of(t, one) for t in (1, 16) for one in (few, lots)} <= {*get_args(Plan)}


@pytest.mark.parametrize("compiling", [False, True])
def test_without_gradients_the_plan_is_that_of_the_lowest_cost(
    compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _, _ = many(600, 64)
    x = torch.randn(512, 64)
    assert plan_of(512, weights) == "chosen"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with torch.no_grad():
        _, found = add_update(x, weights)
        update, shares = routed_update(x, weights)
    assert {*weights.plans} == {512}
    assert isinstance(found, Choice) == (not compiling)
    assert isinstance(shares, torch.Tensor)
    torch.testing.assert_close(shares.sum(1), torch.ones(512))
    recorded, dense_shares = add_update(x.requires_grad_(), weights)
    assert isinstance(dense_shares, torch.Tensor)
    torch.testing.assert_close(dense_shares, shares)
    assert relative_error(recorded.detach(), update) < 1e-5


def test_gradients_come_from_the_dense_products() -> None:
    weights, pairs, setting = many(600)
    x = torch.randn(3, WIDTH_IN, requires_grad=True)
    update, found = add_update(x, weights)
    assert not isinstance(found, Choice)
    update.sum().backward()
    assert x.grad is not None
    slow, _ = reference_update(x.detach(), pairs, [], setting)
    with torch.no_grad():
        assert relative_error(add_update(x, weights)[0], slow) < 1e-5


def test_one_choice_per_context_is_mixed_sparsely_too() -> None:
    weights, _, _ = many(600, level="sequence")
    x = torch.randn(7, WIDTH_IN)
    kept: list[dict[str, torch.Tensor]] = []
    updates = []
    with torch.no_grad():
        for plan in ("all", *SOME):
            contexts = Contexts.of_rows([2, 2], [4, 3], 0)
            update, _ = add_update(x, weights, contexts=contexts, name="a", plan=plan)
            updates.append(update)
            kept.append(contexts.choices)
    for update, choices in zip(updates, kept, strict=True):
        torch.testing.assert_close(update, updates[0])
        assert torch.equal(choices["a"], kept[0]["a"])


def test_coefficients_are_dense_for_those_who_ask() -> None:
    weights, _, _ = many(600)
    x = torch.randn(7, WIDTH_IN)
    with torch.no_grad():
        _, shares = routed_update(x, weights)
        _, choice = add_update(x, weights, plan="chosen")
    assert isinstance(choice, Choice)
    assert shares.shape == (7, 600)
    torch.testing.assert_close(shares.sum(1), torch.ones(7))
    torch.testing.assert_close(Choice.of(shares, 3).dense(600), shares)


def test_costs_are_sums_over_entries() -> None:
    """Worked out by hand: 8 of 400 rows per token, 100->1,000."""
    rates = Rates(loaded=1.0, dense=0.5, read=(3.0, 30.0), write=(4.0, 40.0), itemsize=8)
    found = costs(Size(tokens=10, all_rows=400, rows=8, width_in=100, width_out=1000), rates)
    read_all, write_all = 40_000 * (1 + 5), 400_000 * (1 + 5) + 400 * 10
    # The A's take 320 kB, the B's 3.2 MB, more than the cache has.
    read_own, write_own = 80 * 100 * 3, 80 * 1000 * 40
    assert found == {
        "all": 50_000 + read_all + write_all,
        "write chosen": 90_000 + 5_000 + read_all + write_own,
        "chosen": 130_000 + 8_000 + read_own + write_own,
    }


def cheapest(tokens: int, rates: Rates) -> Plan:
    found = costs(Size(tokens, 600 * 2, 3 * 2, 64, WIDTH_OUT), rates)
    return min(found, key=lambda plan: found[plan])


@pytest.mark.parametrize(
    ("dtype", "built_in", "rates"),
    [
        (torch.float32, True, SPARSE),
        (torch.float32, False, GATHERED),
        (torch.bfloat16, True, GATHERED_16),
    ],
)
def test_plans_follow_the_rates_of_a_layer_s_type(
    dtype: torch.dtype, built_in: bool, rates: Rates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "_built_in", lambda: built_in)
    weights, _, _ = many(600, 64, dtype=dtype)
    tokens = range(1, 300, 3)
    expected = [cheapest(t, rates) for t in tokens]
    assert [plan_of(t, weights) for t in tokens] == expected
    for other in {SPARSE, GATHERED, GATHERED_16} - {rates}:
        assert [cheapest(t, other) for t in tokens] != expected


@pytest.mark.parametrize(("rows", "read"), [(4096, 3.0), (4097, 30.0)])
def test_a_factor_of_2_mib_fits_into_the_cache(rows: int, read: float) -> None:
    rates = Rates(loaded=1.0, dense=0.5, read=(3.0, 30.0), write=(4.0, 40.0), itemsize=4)
    found = costs(Size(tokens=1, all_rows=rows, rows=2, width_in=128, width_out=8), rates)
    assert found["chosen"] == 130_000 + 800 + 2 * 128 * read + 2 * 8 * 4


@pytest.mark.parametrize("rates", [SPARSE, GATHERED, GATHERED_16])
def test_only_dense_products_grow_with_the_library(rates: Rates) -> None:
    def at(all_rows: int) -> dict[Plan, float]:
        return costs(Size(512, all_rows, 12, 3072, 9216), rates)

    ten, thousand, more = at(40), at(4000), at(8000)
    assert ten["all"] == min(ten.values())
    assert thousand["all"] == max(thousand.values())
    assert more["chosen"] == thousand["chosen"]
    assert more["all"] > 1.9 * thousand["all"]


@pytest.mark.parametrize("plan", get_args(Plan)[:3])
@pytest.mark.parametrize("combine", ["outputs", "factors"])
def test_no_tokens_have_no_update(plan: Plan, combine: Any) -> None:
    pairs = [random_pair(2, seed=n) for n in range(5)]
    setting = Setting(rule="factors", combine=combine, subtract=(), top_k=2)
    weights = build(pairs, [], setting, dtype=torch.float32)
    with torch.no_grad():
        update, _ = add_update(torch.ones(0, WIDTH_IN), weights, plan=plan)
    assert update.shape == (0, WIDTH_OUT)
