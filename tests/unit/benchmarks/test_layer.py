"""The two updates that the layer row times are one function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from common import dense, relative_error

from benchmarks.layer import contestants, layer_rows
from benchmarks.random_library import write_random_library
from benchmarks.sizes import QUICK
from gks_eval.library.load import load_library


@pytest.mark.parametrize(("width_in", "width_out"), [(48, 96), (64, 64)])
@pytest.mark.parametrize("experts", [2, 10])
def test_ours_and_pefts_agree(width_in: int, width_out: int, experts: int) -> None:
    with contestants(
        width_in,
        width_out,
        experts=experts,
        rank=4,
        device="cpu",
        dtype=torch.float32,
        seed=int(torch.randint(1000, ())),
    ) as layer:
        x_TK = torch.randn(33, width_in)
        with torch.no_grad():
            calls = layer.calls(x_TK)
            ours, theirs, base = calls["routed"](), calls["peft"](), calls["base"]()
            whole = layer.peft(x_TK[None])[0]  # PEFT's own forward: base and update
    assert set(calls) == {"base", "routed", "peft"}
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    assert float(theirs.abs().max()) > 0.1
    assert relative_error(ours, theirs) < 1e-5
    assert relative_error(base + ours, whole) < 1e-5


def test_in_16_bits_the_prototypes_have_a_product_of_their_own() -> None:
    with contestants(
        64, 64, experts=4, rank=4, device="cpu", dtype=torch.bfloat16, seed=0
    ) as layer:
        x_TK = torch.randn(5, 64).bfloat16()
        calls = layer.calls(x_TK)
        scores_TE = calls["prototypes"]()
    assert isinstance(scores_TE, torch.Tensor)
    assert scores_TE.shape == (5, 4)
    assert scores_TE.dtype == torch.float32
    assert layer.weights.directions is not None
    assert layer.peft.lora_A["task_0"].weight.dtype == torch.bfloat16


def test_a_row_says_what_was_run() -> None:
    told: list[str] = []
    rows = layer_rows(
        QUICK, rounds=2, device="cpu", dtype=torch.float32, seed=0, report=told.append
    )
    cases = [(k, d, t) for k, d in QUICK.layers for t in QUICK.layer_tokens]
    assert [(row.width_in, row.width_out, row.tokens) for row in rows] == cases
    assert len(told) == len(cases)
    for row in rows:
        assert {len(timing.rounds) for timing in row.seconds.values()} == {2}
        assert row.max_difference < 1e-5 * row.largest
        # The result alone is T x D; PEFT makes one such for every expert, twice.
        result = 4 * row.tokens * row.width_out
        assert row.peak_bytes["routed"] >= result
        assert row.peak_bytes["peft"] >= 2 * QUICK.experts * result


def test_a_random_library_is_what_its_seed_says(tmp_path: Path) -> None:
    shapes = {"linear": (24, 16)}
    one = load_library(write_random_library(tmp_path / "one", shapes, experts=2, seed=5))
    same = load_library(write_random_library(tmp_path / "same", shapes, experts=2, seed=5))
    other = load_library(write_random_library(tmp_path / "other", shapes, experts=2, seed=6))
    pair = one.experts["expert-1"].pairs["linear"]
    assert pair.shape == (24, 16)
    assert pair.scaling == 4.0
    assert torch.equal(dense(pair), dense(same.experts["expert-1"].pairs["linear"]))
    assert not torch.equal(dense(pair), dense(other.experts["expert-1"].pairs["linear"]))
