"""Prototypes against the SVD of the full update; coefficients against a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import dense, random_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import coefficients, top_direction

from gks_eval.method.declaration import Layer, Tokens
from gks_eval.method.lora import LoraPair, stack
from gks_eval.method.registry import ROUTERS, RULES
from gks_eval.method.routers.arrow import ArrowParameters, LayerArrow
from gks_eval.method.routers.input_norm import token_sizes
from gks_eval.method.routers.prototypes import prototype, prototypes
from gks_eval.method.routers.random import Seeded
from gks_eval.method.routers.top_k import top_k_softmax


def arrow_coefficients(
    scores: torch.Tensor, top_k: int, temperature: float = 1.0, dead: torch.Tensor | None = None
) -> torch.Tensor:
    nothing = torch.empty(len(scores), 0)
    return LayerArrow(top_k, temperature, dead).coefficients(Tokens(nothing, scores, nothing))


def with_spectrum(values: list[float], width_in: int, width_out: int, seed: int) -> LoraPair:
    """Return float32 factors of an update with these singular values, mixed by a random basis."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rank = len(values)
    left, right = (
        torch.linalg.qr(gaussian(width_out, rank)).Q,
        torch.linalg.qr(gaussian(width_in, rank)).Q,
    )
    mix = gaussian(rank, rank) + 2 * torch.eye(rank, dtype=torch.float64)
    B = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ mix
    A = torch.linalg.solve(mix, right.T)
    return LoraPair(A.float(), B.float(), 2.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("width_in", "width_out"), [(64, 64), (64, 192), (192, 48), (5, 4), (4, 9)]
)
def test_prototype_is_the_top_right_singular_vector(
    seed: int, width_in: int, width_out: int
) -> None:
    pair = with_spectrum([3.0, 2.0, 1.0, 0.3], width_in, width_out, seed)
    expected, gap = top_direction(dense(pair))
    assert gap > 0.2
    found = prototype(pair)
    assert found.dtype == torch.float32
    assert found.shape == (width_in,)
    assert found.norm() == pytest.approx(1.0, abs=1e-6)
    expected = expected * torch.sign(expected @ found.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert found[found.abs().argmax()] > 0


@pytest.mark.parametrize("width_out", [6, 40])
def test_prototype_of_a_stack_that_out_ranks_the_layer(width_out: int) -> None:
    # The exact residual of three general adapters has rank 16, in a layer of width 10.
    pairs = [random_pair(4, 10, width_out, seed=n) for n in range(4)]
    residual = RULES.get("delta")(pairs[0], pairs[1:])
    assert residual.rank > 10
    expected, gap = top_direction(dense(residual))
    assert gap > 0.02
    found = prototype(residual).double()
    assert abs(float(found @ expected)) == pytest.approx(1.0, abs=1e-7)


def test_scaling_and_balance_of_the_factors_do_not_matter() -> None:
    pair = random_pair(seed=3)
    lopsided = LoraPair(pair.A * 1e-5, pair.B * 1e4, scaling=0.01)
    torch.testing.assert_close(prototype(lopsided), prototype(pair), rtol=1e-5, atol=1e-6)
    stacked = stack([lopsided, random_pair(seed=4)], [1.0, 0.0])
    torch.testing.assert_close(prototype(stacked), prototype(pair), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["factors", "delta", "orthogonal"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("width_in", [10, 300])
def test_a_zero_residual_has_the_prototype_zero(rule: str, count: int, width_in: int) -> None:
    task = random_pair(seed=5, width_in=width_in)
    general = [LoraPair(task.A.clone(), task.B.clone(), task.scaling) for _ in range(count)]
    assert not prototype(RULES.get(rule)(task, general)).any()


def test_an_untrained_adapter_has_the_prototype_zero() -> None:
    pair = random_pair(seed=6)
    for untrained in (
        LoraPair(pair.A, torch.zeros_like(pair.B), 1.0),
        LoraPair(torch.zeros_like(pair.A), pair.B, 1.0),
    ):
        found = prototypes([untrained, pair])
        assert found.dtype == torch.float32
        assert not found[0].any()


def test_an_update_of_one_direction_has_that_as_its_prototype() -> None:
    # dW = b (c A): its only right singular vector is c A, whatever the rank of the factors.
    pair = random_pair(seed=9, dtype=torch.float64)
    for c in (torch.tensor([[0.5, -2.0, 1.0, 3.0]]).double(), torch.eye(4)[:1].double()):
        direction = (c @ pair.A)[0]
        direction = direction / direction.norm()
        direction = direction * direction[direction.abs().argmax()].sign()
        for update in (
            LoraPair(pair.A, pair.B[:, :1] @ c, 1.0),
            LoraPair(c @ pair.A, pair.B[:, :1], 1.0),
        ):
            torch.testing.assert_close(prototype(update), direction.float())


def test_a_small_but_real_residual_has_a_prototype() -> None:
    task = random_pair(seed=7)
    nudged = LoraPair(task.A, task.B + 1e-3 * random_pair(seed=8).B, task.scaling)
    expected, _ = top_direction(dense(task) - dense(nudged))
    found = prototype(RULES.get("delta")(task, [nudged])).double()
    assert abs(float(found @ expected)) == pytest.approx(1.0, abs=1e-5)


def test_prototypes_stack_in_order() -> None:
    pairs = [random_pair(seed=n) for n in range(3)]
    found = prototypes(pairs)
    assert found.shape == (3, 16)
    for row, pair in zip(found, pairs, strict=True):
        assert torch.equal(row, prototype(pair))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 12),
    experts=st.integers(1, 7),
    top_k=st.integers(1, 9),
    temperature=st.floats(0.1, 10),
)
def test_coefficients_against_a_loop(
    seed: int, tokens: int, experts: int, top_k: int, temperature: float
) -> None:
    scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * 3
    found = arrow_coefficients(scores, top_k, temperature)
    assert found.shape == (tokens, experts)
    assert found.dtype == torch.float32
    for row, share in zip(scores.tolist(), found, strict=True):
        expected = torch.tensor(coefficients(row, top_k, temperature))
        torch.testing.assert_close(share, expected, rtol=2e-5, atol=1e-6)
    if tokens:
        torch.testing.assert_close(found.sum(1), torch.ones(tokens))


def test_the_sign_of_a_score_does_not_matter() -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    flips = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    assert torch.equal(arrow_coefficients(scores, 2), arrow_coefficients(scores * flips, 2))


def test_scores_of_16_bits_get_a_softmax_in_float32() -> None:
    scores = torch.tensor([[100.0, 99.5, 3.0]], dtype=torch.bfloat16)
    expected = torch.softmax(scores.float(), dim=-1)
    torch.testing.assert_close(arrow_coefficients(scores, 3), expected)


def test_huge_scores_do_not_overflow() -> None:
    found = arrow_coefficients(torch.tensor([[3e30, -2e30, 1.0]]), 2, 0.01)
    assert found.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-40, 1e-38, 1e-20])
def test_towards_temperature_zero_the_best_expert_has_it_all(
    top_k: int, temperature: float
) -> None:
    scores = torch.tensor([[1.0, -9.0, 3.0, 2.0], [0.5, 0.0, 0.0, 0.4]])
    best = torch.nn.functional.one_hot(torch.tensor([1, 0]), 4).float()
    assert torch.equal(arrow_coefficients(scores, top_k, temperature), best)


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e308])
def test_towards_temperature_infinity_the_chosen_share_equally(temperature: float) -> None:
    found = arrow_coefficients(torch.tensor([[1.0, -9.0, 3.0]]), 2, temperature)
    assert found.tolist() == [[0.0, 0.5, 0.5]]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_ties_choose_exactly_top_k_and_share_equally(top_k: int) -> None:
    found = arrow_coefficients(torch.full((5, 4), -0.7), top_k)
    assert ((found > 0).sum(1) == top_k).all()
    torch.testing.assert_close(found[found > 0], torch.full((5 * top_k,), 1 / top_k))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_dead_experts_come_after_all_live_ones(top_k: int) -> None:
    # Experts 0 and 2 are dead; every live score is zero as well, the worst case.
    dead = torch.tensor([True, False, True, False])
    for scores in (torch.zeros(3, 4), torch.tensor([[0.0, 1e-20, 0.0, -3.0]])):
        found = arrow_coefficients(scores, top_k, 1.0, dead)
        live = (found[:, ~dead] > 0).sum(1)
        assert (live == min(top_k, 2)).all()
        assert ((found > 0).sum(1) == top_k).all()
        torch.testing.assert_close(found.sum(1), torch.ones(len(scores)))


def test_inputs_are_not_written_to() -> None:
    scores = torch.randn(4, 3)
    before = scores.clone()
    arrow_coefficients(scores, 2, 1.0, torch.tensor([True, False, False]))
    assert torch.equal(scores, before)


@pytest.mark.parametrize(("scale", "power"), [("none", 0), ("singular", 1), ("squared", 2)])
def test_scaled_prototypes_are_those_of_the_full_update(scale: str, power: int) -> None:
    pairs = [random_pair(seed=n, scaling=1.0 + n) for n in range(4)]
    prepared = ROUTERS.get("arrow")(Layer("", pairs), ArrowParameters(proto_scale=scale))
    assert prepared.directions is not None
    for pair, row in zip(pairs, prepared.directions.double(), strict=True):
        _, singular, right = torch.linalg.svd(dense(pair))
        torch.testing.assert_close(row.norm(), singular[0] ** power, rtol=1e-5, atol=0)
        torch.testing.assert_close((row @ right[0]).abs(), row.norm(), rtol=1e-5, atol=0)
    drawn = ROUTERS.get("random")(Layer("", pairs), Seeded(proto_scale=scale)).directions
    assert drawn is not None
    torch.testing.assert_close(drawn.norm(dim=1), prepared.directions.norm(dim=1))


@pytest.mark.parametrize("given", [0.0, -0.0, -3.0])
def test_a_temperature_of_0_is_the_root_of_the_width(given: float) -> None:
    parameters = ArrowParameters(temperature=given, top_k=-1)
    choose = LayerArrow.at(torch.eye(16)[:3], parameters).choose
    scores = torch.tensor([[8.0, -4.0, 0.0]])
    found = choose.coefficients(Tokens(scores, scores, scores))
    torch.testing.assert_close(found, torch.softmax(torch.tensor([[2.0, 1.0, 0.0]]), dim=1))


@pytest.mark.parametrize("given", [0.25, 0.5, 3.0])
def test_a_temperature_above_0_divides_the_scores(given: float) -> None:
    parameters = ArrowParameters(temperature=given, top_k=-1)
    choose = LayerArrow.at(torch.eye(16)[:3], parameters).choose
    scores = torch.tensor([[2.0, -1.0, 0.5]])
    expected = torch.softmax(scores.abs() / given, dim=1)
    torch.testing.assert_close(choose.coefficients(Tokens(scores, scores, scores)), expected)


def test_all_temperatures_for_the_root_of_the_width_are_one_setting() -> None:
    found = {repr(ArrowParameters(temperature=given).temperature) for given in (0.0, -0.0, -3.0)}
    assert found == {"0.0"}


def test_experts_without_a_prototype_come_after_live_scores_of_zero() -> None:
    directions = torch.eye(4)
    directions[0] = directions[2] = 0.0
    choose = LayerArrow.at(directions, ArrowParameters(top_k=2)).choose
    nothing = torch.zeros(1, 4)
    found = choose.coefficients(Tokens(nothing, nothing, nothing))
    assert found.tolist() == [[0.0, 0.5, 0.0, 0.5]]


@pytest.mark.parametrize("norm", ["id", "layer", "unit"])
def test_scores_of_normalised_tokens_are_those_of_normalised_copies(norm: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    directions = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    x = 5 * torch.randn(6, 8, generator=generator) + 2
    prepared = LayerArrow.at(directions, ArrowParameters(top_k=-1, input_norm=norm))
    assert prepared.directions is not None
    found = prepared.choose.coefficients(Tokens(x, x @ prepared.directions.T, x))
    copies = {
        "id": x,
        "layer": torch.nn.functional.layer_norm(x, (8,)),
        "unit": torch.nn.functional.normalize(x),
    }
    expected = torch.softmax((copies[norm] @ directions.T).abs(), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_default_temperature_is_1() -> None:
    scores = torch.tensor([[3.0, 2.0, -1.0]])
    torch.testing.assert_close(top_k_softmax(scores, -1), torch.softmax(scores, dim=1))


def test_sizes_of_tokens_are_those_of_a_layer_norm_and_of_a_norm_above_zero() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    centred = x - x.mean(dim=1, keepdim=True)
    expected = torch.nn.functional.layer_norm(x, (5,))
    torch.testing.assert_close(centred / token_sizes(x, "layer"), expected)
    torch.testing.assert_close(x / token_sizes(x, "unit"), torch.nn.functional.normalize(x))
    constant = torch.zeros(1, 5)
    found = [token_sizes(constant, norm).item() for norm in ("id", "unit", "layer")]
    assert found == pytest.approx([1.0, 1e-8, 1e-5**0.5])
