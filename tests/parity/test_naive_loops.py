"""The routed update against loops over tokens and experts, for every combination there is.

Every run draws new inputs (hypothesis prints the seed of a failure). Top-k is
discontinuous, so tokens whose choice hangs on less than rounding are left out, and counted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import oracle
import pytest
import torch
from common import random_pair, relative_error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gks_eval.method.build import build
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting

EVERY = [
    pytest.param(combine, rule, router, general, id=f"{combine}-{rule}-{router}-{general}")
    for combine, rule, router, general in itertools.product(
        ("outputs", "factors"),
        ("factors", "delta", "orthogonal"),
        ("arrow", "uniform", "one"),
        (0, 1, 3),
    )
    if general or rule == "factors"
]
FRESH = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
SEEDS = st.integers(0, 2**32 - 1)


@dataclass
class Case:
    x: torch.Tensor
    experts: list[LoraPair]
    general: list[LoraPair]
    setting: Setting


def draw(seed: int, combine: str, rule: str, router: str, general: int) -> Case:
    """Return a random layer, its adapters (some leave it alone where allowed) and a setting."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    count, rank, width_in, width_out = pick(2, 6), pick(1, 5), pick(12, 40), pick(8, 48)
    unequal = combine == "outputs" and (rule == "delta" or not general)

    def pair() -> LoraPair:
        own_rank, scaling = (pick(1, 5), pick(1, 8) / 2) if unequal else (rank, 4.0)
        return random_pair(own_rank, width_in, width_out, scaling, seed=pick(0, 2**31))

    experts = [pair() for _ in range(1 if router == "one" else count)]
    subtracted = [pair() for _ in range(general)]
    shape = width_out, width_in
    if combine == "outputs" and len(experts) > 1 and pick(0, 1):
        experts[pick(0, count - 1)] = no_update(shape)
    if rule == "delta" and general and pick(0, 2) == 0:
        subtracted[-1] = no_update(shape)
    setting = Setting(
        combine=combine,
        rule=rule,
        router=router,
        top_k=pick(1, count),
        temperature=pick(2, 8) / 4,
        subtract=("avg",) if general else (),
        scale=(1.0, -1.0, 0.25, 2.0)[pick(0, 3)],
    )
    return Case(
        x=torch.randn(pick(1, 9), width_in, generator=generator),
        experts=experts,
        general=subtracted,
        setting=setting,
    )


def expected_where_defined(case: Case, x: torch.Tensor) -> tuple[oracle.Routed, torch.Tensor]:
    """Return the loops' result, and which tokens have no near-tie."""
    expected = oracle.routed(x, case.experts, case.general, case.setting)
    if case.setting.router == "arrow":
        assume(expected.spectral_gap > 0.05)
    # Where terms cancel to a hundredth, 1e-5 of what is left is below float32's own rounding.
    assume(expected.magnitude.max() < 100 * expected.update.abs().max())
    clear = expected.tie_gap > 1e-4
    assert (~clear).sum() <= 1, "near-ties are rare in random inputs"
    return expected, clear


@pytest.mark.parametrize(("combine", "rule", "router", "general"), EVERY)
@FRESH
@given(seed=SEEDS)
def test_float32(combine: str, rule: str, router: str, general: int, seed: int) -> None:
    case = draw(seed, combine, rule, router, general)
    expected, clear = expected_where_defined(case, case.x)
    weights = build(case.experts, case.general, case.setting, dtype=torch.float32)
    found = routed_update(case.x, weights)[0]
    shares = routed_update(case.x, weights)[1].expand(len(case.x), -1)
    assert found.dtype == torch.float32
    assert relative_error(found[clear], expected.update[clear]) < 1e-5
    assert relative_error(shares[clear], expected.shares[clear]) < 1e-5
    torch.testing.assert_close(shares.sum(1), torch.ones(len(case.x)))


@pytest.mark.parametrize(("combine", "rule", "router", "general"), EVERY)
@FRESH
@given(seed=SEEDS)
def test_bfloat16(combine: str, rule: str, router: str, general: int, seed: int) -> None:
    case = draw(seed, combine, rule, router, general)
    x = case.x.bfloat16()
    expected, clear = expected_where_defined(case, x)
    weights = build(case.experts, case.general, case.setting, dtype=torch.bfloat16)
    found = routed_update(x, weights)[0]
    shares = routed_update(x, weights)[1].expand(len(x), -1)
    assert found.dtype == torch.bfloat16
    assert shares.dtype == torch.float32
    # Routing is float32 whatever the layer's type is.
    assert relative_error(shares[clear], expected.shares[clear]) < 1e-5
    # Five roundings to 8 bits: A, z, c z, B, and the sum.
    bound = 5 * 2.0**-8 * expected.magnitude
    assert ((found.double() - expected.update).abs() <= bound)[clear].all()


@pytest.mark.parametrize("router", ["arrow", "uniform", "one"])
@FRESH
@given(seed=SEEDS)
def test_one_extra_adapter_does_what_a_residual_an_expert_would(router: str, seed: int) -> None:
    case = draw(seed, "outputs", "delta", router, 3)
    expected, clear = expected_where_defined(case, case.x)
    weights = build(case.experts, case.general, case.setting, dtype=torch.float32)
    # The saving: ranks of the experts and, once, of the general adapters that update the layer.
    once = [pair.rank for pair in case.general if not pair.missing] or [1]
    assert weights.write.shape[0] == sum(pair.rank for pair in case.experts) + sum(once)
    assert weights.stacked == sum(pair.rank for pair in case.experts)
    # `oracle.routed` mixes full residual matrices dW_e - dW_g, one an expert.
    assert relative_error(routed_update(case.x, weights)[0][clear], expected.update[clear]) < 1e-5
