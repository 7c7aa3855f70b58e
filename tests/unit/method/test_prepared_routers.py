"""Routers by prepared vectors, against their formula in float64 with torch's own layer norm."""

from __future__ import annotations

import pytest
import torch
from common import random_pair

from gks_eval.errors import CompatibilityError
from gks_eval.method.build import build
from gks_eval.method.declaration import Layer
from gks_eval.method.registry import ROUTERS
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting

WIDTH = 40


def draws(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(30, WIDTH, generator=generator) + 2.0  # with a mean, which LN takes away
    return x, 0.05 * torch.randn(5, WIDTH, generator=generator) - 0.4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize(("router", "top_k"), [("phatgoose", 2), ("mean_activation", 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_follow_the_formula(
    router: str, top_k: int, temperature: float, seed: int, dtype: torch.dtype
) -> None:
    x, vectors = draws(seed)
    x = x.to(dtype)
    pairs = [random_pair(width_in=WIDTH, seed=n) for n in range(5)]
    setting = Setting(router=router, subtract=(), combine="outputs", temperature=temperature)
    found = routed_update(x, build(pairs, [], setting, dtype=dtype, prepared=vectors))[1]
    norm = torch.nn.LayerNorm(WIDTH, elementwise_affine=False, dtype=torch.float64)
    scores = norm(x.double()) @ norm(vectors.double()).T / WIDTH**0.5 / temperature
    best = scores.topk(top_k + 1, dim=1)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best.indices[:, :top_k], True)
    expected = scores.masked_fill(~kept, -torch.inf).softmax(1)
    clear = best.values[:, top_k - 1] - best.values[:, top_k] > 1e-4
    assert clear.sum() > 25
    assert (scores < 0).any()  # they are signed, unlike Arrow's
    assert (found.double() - expected)[clear].abs().max() < 2e-5


def test_an_expert_without_a_vector_comes_after_those_of_negative_score() -> None:
    x, vectors = draws(0)
    vectors[:4] = -x[0] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    vectors[4] = 0.0
    pairs = [random_pair(width_in=WIDTH, seed=n) for n in range(5)]
    setting = Setting(router="phatgoose", subtract=(), combine="outputs", top_k=4)
    shares = routed_update(x[:1], build(pairs, [], setting, dtype=x.dtype, prepared=vectors))[1]
    assert shares[0, 4] == 0.0
    assert (shares[0, :4] > 0).all()


@pytest.mark.parametrize("router", ["phatgoose", "mean_activation"])
def test_without_vectors_the_sentence_names_the_command(router: str) -> None:
    method = ROUTERS.get(router)
    with pytest.raises(CompatibilityError, match="`gks-eval prepare`"):
        method(Layer("", [random_pair(seed=0)]))
