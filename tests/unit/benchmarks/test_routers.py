"""The router rows time updates of one layer that differ in the router alone."""

from __future__ import annotations

import pytest
import torch
from common import dense, relative_error

from benchmarks.random_library import random_pairs
from benchmarks.routers import ROUTERS, _calls, router_rows
from benchmarks.sizes import QUICK, RouterCase


def test_a_row_compares_every_router_with_uniform_and_arrow() -> None:
    told: list[str] = []
    rows = router_rows(
        QUICK, rounds=2, device="cpu", dtype=torch.float32, seed=0, report=told.append
    )
    assert [RouterCase(r.width_in, r.width_out, r.rank, r.rule) for r in rows] == [
        *QUICK.router_cases
    ]
    assert len(told) == len(rows)
    for row in rows:
        assert tuple(row.seconds) == ROUTERS
        medians = {name: timing.median for name, timing in row.seconds.items()}
        for name in ROUTERS:
            assert row.over_uniform[name].of_medians == medians[name] / medians["uniform"]
            assert row.over_arrow[name].of_medians == medians[name] / medians["arrow"]


@pytest.mark.parametrize("rule", ["factors", "delta"])
def test_what_is_timed_is_the_update(rule: str) -> None:
    case, experts, x_TK = RouterCase(24, 16, 4, rule), 3, torch.randn(5, 24)
    with torch.no_grad():
        calls = _calls(case, experts, x_TK, torch.Generator().manual_seed(3))
        update, coefficients = calls["uniform"]()  # type: ignore[misc]
    generator = torch.Generator().manual_seed(3)
    *pairs, general = (
        random_pairs({"linear": (16, 24)}, 4, generator)["linear"] for _ in range(experts + 1)
    )
    if rule == "delta":
        residuals = [dense(pair) - dense(general) for pair in pairs]
    else:
        residuals = [4.0 * (one.B - general.B) @ (one.A - general.A) for one in pairs]
    mean_DK = torch.stack(residuals).double().mean(0)
    assert relative_error(update, x_TK.double() @ mean_DK.T) < 1e-5
    assert coefficients.shape == (1, experts)
