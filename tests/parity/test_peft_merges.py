"""Merges against PEFT's `add_weighted_adapter`, one linear layer at a time, float32."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from common import dense, random_pair, relative_error
from torch import nn

from gks_eval.method.build import build
from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair, average_factors
from gks_eval.method.registry import MERGES
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting

EQUAL = [random_pair(4, scaling=4.0, seed=n) for n in range(3)]
UNEQUAL = [random_pair(r, scaling=4.0 / r, seed=r) for r in (2, 3, 5)]


def peft_merge(
    pairs: Sequence[LoraPair], weight: float, kind: str, *, rslora: bool = False, **how: Any
) -> torch.Tensor:
    """Return dW of the adapter that PEFT makes of all pairs, each with the same weight."""
    from peft import LoraConfig, get_peft_model

    width_out, width_in = pairs[0].shape
    model: Any = nn.Sequential(nn.Linear(width_in, width_out))
    for n, pair in enumerate(pairs):
        alpha = pair.scaling * (math.sqrt(pair.rank) if rslora else pair.rank)
        config = LoraConfig(r=pair.rank, lora_alpha=alpha, target_modules=["0"], use_rslora=rslora)
        if n == 0:
            model = get_peft_model(model, config, adapter_name="0")
        else:
            model.add_adapter(str(n), config)
        layer = model.base_model.model[0]
        layer.lora_A[str(n)].weight.data.copy_(pair.A)
        layer.lora_B[str(n)].weight.data.copy_(pair.B)
    names = [str(n) for n in range(len(pairs))]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density", UserWarning)
        torch.manual_seed(5)
        model.add_weighted_adapter(names, [weight] * len(names), "merged", kind, **how)
    delta: torch.Tensor = model.base_model.model[0].get_delta_weight("merged").detach()
    return delta


def ours(name: str, pairs: Sequence[LoraPair], **parameters: Any) -> torch.Tensor:
    merge = MERGES.get(name)
    return merge(Layer("", pairs), merge.parameters(**parameters)).delta()


@pytest.mark.parametrize("pairs", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("weight", [1 / 3, 1.0, -0.5])
def test_linear_merges_of_updates(pairs: list[LoraPair], weight: float) -> None:
    total = peft_merge(pairs, weight, "cat")
    assert relative_error(ours("task_arithmetic", pairs, **{"lambda": weight}), total) < 1e-6
    for rank in (1, 4):
        expected = peft_merge(pairs, weight, "svd", svd_rank=rank)
        assert relative_error(ours("svd", pairs, rank=rank, **{"lambda": weight}), expected) < 1e-5
    expected = peft_merge(pairs, weight, "svd")
    assert relative_error(ours("svd", pairs, **{"lambda": weight}), expected) < 1e-5


@pytest.mark.parametrize("name", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.3, -0.3])
def test_pruning(name: str, density: float, weight: float) -> None:
    how = {"density": density, "lambda": weight}
    expected = peft_merge(EQUAL, weight, name, density=density)
    assert relative_error(ours(name, EQUAL, **how), expected) < 1e-5
    for pairs in (EQUAL, UNEQUAL):
        expected = peft_merge(pairs, weight, f"{name}_svd", density=density, svd_rank=3)
        assert relative_error(ours(name, pairs, on="delta", rank=3, **how), expected) < 1e-5


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("weight", [1.0, -0.3])
def test_dropping(name: str, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import model

    # PEFT also draws the new adapter's start; its merge begins at this seed.
    for method in ("dare_linear", "dare_ties"):
        drawn = getattr(model, method)

        def seeded(tensors: Any, *rest: Any, drawn: Any = drawn) -> Any:
            if tensors[0].shape != (24, 4):  # A's and updates come first, B's go on from there
                torch.manual_seed(5)
            return drawn(tensors, *rest)

        monkeypatch.setattr(model, method, seeded)
    how = {"density": 0.5, "seed": 5, "lambda": weight}
    expected = peft_merge(EQUAL, weight, name, density=0.5)
    assert relative_error(ours(name, EQUAL, **how), expected) < 1e-5
    expected = peft_merge(EQUAL, weight, f"{name}_svd", density=0.5, svd_rank=3)
    assert relative_error(ours(name, EQUAL, on="delta", rank=3, **how), expected) < 1e-5


@pytest.mark.parametrize(("kind", "rank"), [("cat", 12), ("svd", 12)])
def test_pefts_merges_of_rank_stabilised_lora_are_too_large(kind: str, rank: int) -> None:
    # The new adapter keeps use_rslora with lora_alpha = r: its scaling is sqrt(r) and not 1.
    how = {"svd_rank": rank} if kind == "svd" else {}
    total = sum(map(dense, EQUAL))
    found = peft_merge(EQUAL, 1.0, kind, rslora=True, **how)
    assert relative_error(found, math.sqrt(rank) * total) < 1e-5
    assert relative_error(ours("task_arithmetic", EQUAL, **{"lambda": 1.0}), total) < 1e-6
    assert relative_error(ours("svd", EQUAL, rank=rank, **{"lambda": 1.0}), total) < 1e-5
    assert relative_error(peft_merge(EQUAL, 1.0, kind, **how), total) < 1e-5


def test_the_authors_simple_average() -> None:
    """PEFT's `linear` with weights 1/E, merged into the weight: E times the uniform mixture.

    `linear` takes the roots of weight and scaling on both factors, so its update is
    ``s / E (sum B)(sum A)``; the uniform mixture of factors is ``s (mean B)(mean A)``.
    """
    count = len(EQUAL)
    theirs = peft_merge(EQUAL, 1 / count, "linear")
    assert relative_error(ours("magnitude_prune", EQUAL, density=1), theirs) < 1e-6
    setting = Setting(router="uniform", subtract=(), combine="factors")
    x = torch.eye(EQUAL[0].shape[1])
    mixed, _ = routed_update(x, build(EQUAL, [], setting, dtype=torch.float32))
    assert relative_error(count * mixed.T, theirs) < 1e-6
    # One adapter with the mean factors, as the authors' code makes it, is the uniform mixture.
    mean = average_factors(EQUAL)
    assert float((mixed.T - dense(mean)).abs().max()) < 1e-7 * float(dense(mean).norm())
