"""Every device path on fake CUDA tensors: devices, types, launches, no waiting.

Fake tensors raise if devices are mixed or a result depends on values. `Launches` refuses copies
between host and GPU. So what passes here can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from common import random_pair
from fake_cuda import WIDE, Launches, fake_cuda
from torch import nn

from gks_eval.method.build import build
from gks_eval.method.choice import Choice
from gks_eval.method.contexts import Contexts
from gks_eval.method.declaration import Tokens
from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.mixing import fused
from gks_eval.method.mixing.plan import Plan
from gks_eval.method.registry import MERGES, ROUTERS
from gks_eval.method.routed import add_update
from gks_eval.method.routers import blocks
from gks_eval.method.routers.arrow import LayerArrow
from gks_eval.method.setting import Setting
from gks_eval.method.weights import RoutedWeights, to_device

K, D, E, T = 64, 48, 6, 16
TYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA = torch.device("cuda:0")


def weights_of(
    text: str, dtype: torch.dtype, general: bool = True, unequal: bool = False
) -> RoutedWeights:
    """Build a layer on the CPU."""
    ranks = [4, 2, 8, 1, 4, 4] if unequal else [4] * E
    experts = [random_pair(rank, K, D, seed=n) for n, rank in enumerate(ranks)]
    subtracted = [random_pair(4, K, D, seed=99)] if general else []
    vectors = torch.randn(E, K, generator=torch.Generator().manual_seed(0))
    setting = Setting.parse(text)[0]
    return build(experts, subtracted, setting, dtype=dtype, name="l", prepared=vectors)


def on_cuda(weights: RoutedWeights, contexts: Contexts | None = None) -> tuple[Any, Launches]:
    """Run the layer on fake tensors; return the update, its coefficients and the launches."""
    moved = to_device(weights, CUDA)
    assert {tensor.device for tensor in moved.tensors()} == {CUDA}
    x = torch.empty(T, K, device=CUDA, dtype=moved.read.dtype)
    into = torch.empty(T, D, device=CUDA, dtype=moved.read.dtype)
    with torch.no_grad(), Launches() as launches:
        update, found = add_update(x, moved, into, contexts, "l")
    assert update is into
    with torch.no_grad(), Launches():
        fresh, _ = add_update(x, moved, None, contexts, "l")
    assert (fresh.shape, fresh.dtype, fresh.device) == ((T, D), moved.read.dtype, CUDA)
    return found, launches


@pytest.fixture(params=[True, False], ids=["triton", "no triton"])
def triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(fused, "has_triton", lambda: request.param)
    return bool(request.param)


def every_router() -> Iterator[str]:
    for router in ROUTERS.names():
        for rule in ("factors", "delta", "orthogonal"):
            for combine in ("factors", "outputs"):
                yield f"{router}:en;rule={rule};combine={combine}"


SETTINGS = [
    *every_router(),
    "arrow:en;input_norm=layer",
    "arrow:en;input_norm=unit;top_k=-1",
    "spectr:en;weights=equal",
    "lag:en;shortlist=4",
    *(f"merge:{merge}" for merge in MERGES.names()),
    "expert:one",
]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_setting_runs_on_one_gpu(dtype: torch.dtype, triton: bool) -> None:
    for text in SETTINGS:
        weights = weights_of(text, dtype, general=not text.startswith(("merge", "expert")))
        with fake_cuda():
            found, _ = on_cuda(weights)
        shares = found.shares if isinstance(found, Choice) else found
        assert (shares.dtype, shares.device) == (torch.float32, CUDA), text


@pytest.mark.parametrize("dtype", TYPES)
def test_blocks_of_many_experts(
    dtype: torch.dtype, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "FEW", 0)
    for router in ("spectr", "norm", "lag"):
        for rule in ("factors", "delta"):
            unequal = rule == "delta"
            weights = weights_of(f"{router}:en;combine=outputs;rule={rule}", dtype, unequal=unequal)
            with fake_cuda():
                on_cuda(weights)


@pytest.mark.parametrize("dtype", TYPES)
def test_unequal_ranks_and_missing_updates(dtype: torch.dtype, triton: bool) -> None:
    weights = weights_of("arrow;combine=outputs", dtype, general=False, unequal=True)
    with fake_cuda():
        on_cuda(weights)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("plan", ["all", "write chosen", "chosen"])
def test_every_plan_runs_on_one_gpu(plan: Plan, dtype: torch.dtype) -> None:
    weights = weights_of("arrow:en;rule=delta", dtype)
    with fake_cuda(), torch.no_grad():
        x = torch.empty(T, K, device=CUDA, dtype=dtype)
        update, _ = add_update(x, to_device(weights, CUDA), plan=plan)
        assert (update.shape, update.dtype, update.device) == ((T, D), dtype, CUDA)


# More than five only for norms of the token, and of residuals that are not stored.
LAUNCHES = {
    "arrow:en": 3,
    "arrow:en;rule=delta": 3,
    "arrow:en;combine=outputs;top_k=-1": 3,
    "random:en": 3,
    "shuffled:en": 3,
    "spectr:en": 5,
    "norm:en": 5,
    "norm:en;rule=delta": 6,
    "arrow:en;input_norm=layer": 6,
    "arrow:en;input_norm=unit": 6,
    "mean_activation:en": 7,
    "phatgoose:en": 7,
}


@pytest.mark.parametrize("text", LAUNCHES)
@pytest.mark.parametrize("dtype", TYPES)
def test_launches_per_layer(text: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype != torch.float32 and not WIDE:
        pytest.skip("this torch has no product into float32")
    monkeypatch.setattr(fused, "has_triton", lambda: True)
    weights = weights_of(text, dtype)
    with fake_cuda():
        _, launches = on_cuda(weights)
    assert launches.count == LAUNCHES[text], launches.operators


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("router", ["arrow", "norm", "spectr"])
def test_one_choice_per_context(router: str, dtype: torch.dtype, triton: bool) -> None:
    weights = weights_of(f"{router}:en;level=sequence", dtype)
    with fake_cuda():
        contexts = Contexts.of_rows([3, 4], [8, 7], 8, CUDA)
        on_cuda(weights, contexts)
        following = contexts.next_token()
        assert following.of_token.device == CUDA


def test_contexts_follow_the_layers_of_a_model_that_is_split_over_gpus() -> None:
    with fake_cuda():
        contexts = Contexts.of_rows([3, 4], [8, 7], 8, CUDA)
        assert {contexts.of_token.device, contexts.own.device} == {CUDA}
        router = LayerArrow(2, 1.0, None)
        for device in ("cuda:0", "cuda:1"):
            scores = torch.empty(T, E, device=device)
            for _ in range(2):  # chosen, and as chosen before
                found = contexts.coefficients(device, router, Tokens(scores, scores, scores))
                assert (found.shape, found.device) == ((T, E), torch.device(device))


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_follow_the_input_to_another_gpu_and_back(dtype: torch.dtype, triton: bool) -> None:
    """As in a model that is split over GPUs, or whose layers are offloaded."""
    weights = weights_of("arrow:en;rule=delta", dtype)
    with fake_cuda():
        layer = nn.Linear(K, D, bias=False, dtype=dtype)
        hook = RoutedUpdate(layer, "l")
        hook.weights = weights
        seen: list[torch.Tensor] = []
        for device in ("cuda:1", "cuda:0", "cpu", "cuda:1"):
            layer.weight = nn.Parameter(torch.empty(D, K, device=device, dtype=dtype))
            with torch.no_grad():
                output = layer(torch.empty(2, T, K, device=device, dtype=dtype))
            assert (output.device, output.dtype) == (torch.device(device), dtype)
            assert {one.device for one in hook.weights.tensors()} == {torch.device(device)}
            split = WIDE and dtype != torch.float32 and device != "cpu"
            assert bool(hook.weights.parts) == split
        hook.observer = lambda _, c_TE: seen.append(c_TE)
        with torch.no_grad(), Launches():
            layer(torch.empty(1, 1, K, device="cuda:1", dtype=dtype))
        assert seen[0].shape == (1, E)


def test_devices_are_not_mixed() -> None:
    """Weights that stay behind raise here, as they would on a GPU."""
    weights = weights_of("arrow:en", torch.float32)
    with fake_cuda():
        x = torch.empty(T, K, device="cuda:1")
        moved = to_device(weights, CUDA)
        with torch.no_grad(), pytest.raises(RuntimeError, match="cuda:1"):
            add_update(x, moved)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.bincount(x.long()[0]),
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
    ],
)
def test_what_waits_for_a_gpu_is_noticed(step: Any) -> None:
    with fake_cuda(), Launches(), pytest.raises(Exception) as caught:
        step(torch.empty(4, 4, device=CUDA))
    name = type(caught.value).__name__
    assert name in ("DataDependentOutputException", "DynamicOutputShapeException", "AssertionError")


def test_training_runs_on_one_gpu(triton: bool) -> None:
    """With gradients, which split products do not have."""
    for dtype in TYPES:
        weights = weights_of("arrow:en;rule=delta", dtype)
        with fake_cuda():
            moved = to_device(weights, CUDA)
            x = torch.empty(T, K, device=CUDA, dtype=dtype, requires_grad=True)
            update, _ = add_update(x, moved)
            assert update.requires_grad
            assert (update.device, update.dtype) == (CUDA, dtype)
