"""The hook on one linear layer, against the mean of the full updates."""

from __future__ import annotations

import pytest
import torch
from common import dense, random_pair, relative_error
from torch import nn

from gks_eval.method import routed
from gks_eval.method.build import build
from gks_eval.method.contexts import Contexts
from gks_eval.method.hook import RoutedUpdate, share, suspended, updates_of
from gks_eval.method.reference import reference_update
from gks_eval.method.setting import Setting

K, D, E = 16, 24, 3
PAIRS = [random_pair(2, K, D, seed=n) for n in range(E)]
MEAN = torch.stack([dense(pair) for pair in PAIRS]).mean(0)
UNIFORM = "uniform;combine=outputs"


def hooked(
    dtype: torch.dtype = torch.float32, of_weights: torch.dtype = torch.float32, text: str = UNIFORM
) -> tuple[nn.Linear, RoutedUpdate]:
    torch.manual_seed(0)
    layer = nn.Linear(K, D, dtype=dtype)
    update = RoutedUpdate(layer, "l")
    update.weights = build(PAIRS, [], Setting.parse(text)[0], dtype=of_weights, name="l")
    return layer, update


def expected(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    assert layer.bias is not None
    return x.double() @ (layer.weight.double() + MEAN).T + layer.bias.double()


@pytest.mark.parametrize("of_weights", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grad", [False, True])
def test_types_of_layer_and_update_may_differ(
    dtype: torch.dtype, of_weights: torch.dtype, grad: bool
) -> None:
    layer, _ = hooked(dtype, of_weights)
    x = torch.randn(2, 5, K).to(dtype)
    with torch.set_grad_enabled(grad):
        found = layer(x)
        named = layer(input=x)
    assert (found.shape, found.dtype) == ((2, 5, D), dtype)
    assert torch.equal(found, named)
    tolerance = 2e-2 if torch.bfloat16 in (dtype, of_weights) else 1e-6
    assert relative_error(found.detach(), expected(layer, x).detach()) < tolerance


@torch.no_grad()
def test_the_base_is_back_inside_a_block_and_after_removal() -> None:
    model = nn.Sequential(*(hooked()[0] for _ in range(2)))
    x = torch.randn(4, K)
    model[0].register_forward_hook(lambda *_: None)
    first, second = updates_of(model)
    assert (first.layer, second.layer) == (model[0], model[1])
    second.weights = None
    for layer in model:
        assert isinstance(layer, nn.Linear)
        with suspended(model):
            assert torch.equal(layer(x), layer.forward(x))
    with pytest.raises(ZeroDivisionError), suspended(model):
        _ = 1 / 0
    assert relative_error(model[0](x), expected(model[0], x)) < 1e-6
    assert torch.equal(model[1](x), model[1].forward(x))
    first.remove()
    assert updates_of(model) == [second]
    assert torch.equal(model[0](x), model[0].forward(x))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("plan", ["all", "write chosen", "chosen"])
@torch.no_grad()
def test_coefficients_are_those_of_the_loops_by_any_plan(
    plan: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed, "plan_of", lambda *_: plan)
    text = "arrow;combine=outputs;top_k=2"
    layer, update = hooked(text=text)
    seen: list[torch.Tensor] = []
    update.observer = lambda _, c_TE: seen.append(c_TE)
    x = 3 * torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, base = layer(x), layer.forward(x)
    slow, shares = reference_update(x.flatten(0, 1), PAIRS, [], Setting.parse(text)[0])
    torch.testing.assert_close(seen[0].double(), shares, rtol=1e-5, atol=1e-5)
    assert found.dtype == base.dtype == (torch.bfloat16 if autocast else torch.float32)
    tolerance = 1e-2 if autocast else 1e-5
    assert relative_error(found.flatten(0, 1), base.flatten(0, 1).double() + slow) < tolerance


@torch.no_grad()
def test_equal_coefficients_are_observed_for_every_token() -> None:
    layer, update = hooked()
    seen: list[torch.Tensor] = []
    update.observer = lambda _, c_TE: seen.append(c_TE)
    layer(torch.ones(2, 4, K))
    assert torch.equal(seen[0], torch.full((8, E), 1 / 3))


@torch.no_grad()
def test_one_choice_per_context_is_observed_without_padding() -> None:
    layer, update = hooked(text="arrow;combine=outputs;level=sequence;top_k=1")
    seen: list[torch.Tensor] = []
    update.observer = lambda name, c_TE: seen.append(c_TE) if name == "l" else None
    x = torch.randn(2, 4, K)
    with Contexts.of_rows([2, 3], [2, 4], 4).active():
        layer(x)
    (c_TE,) = seen
    assert c_TE.shape == (6, E)
    assert torch.equal(c_TE[:2], c_TE[:1].expand(2, E))
    assert torch.equal(c_TE[2:], c_TE[2:3].expand(4, E))


@torch.no_grad()
def test_layers_without_weights_are_left_out_of_sharing() -> None:
    made = [hooked(text="arrow;combine=outputs;top_k=3") for _ in range(4)]
    layers, updates = [layer for layer, _ in made], [update for _, update in made]
    x = torch.randn(5, K)
    alone = [layer(x) for layer in layers]
    share(updates)
    updates[1].weights = None
    share(updates)
    assert updates[1]._siblings is None
    assert updates[0]._siblings is not None
    seen: list[str] = []
    for n, update in enumerate(updates):
        update.name = f"l{n}"
        update.observer = lambda name, c_TE: seen.append(f"{name} {c_TE.shape[0]}")
    for n in (0, 2, 3):
        assert relative_error(layers[n](x), alone[n]) < 1e-6
    assert seen == ["l0 5", "l2 5", "l3 5"]
    assert torch.equal(layers[1](x), layers[1].forward(x))
    share(updates[:1])
    assert updates[0]._siblings is None
    assert relative_error(layers[0](x), alone[0]) < 1e-6
