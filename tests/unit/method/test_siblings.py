"""Layers of one input that compute together: the same as alone and as plain loops, or alone."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from common import random_pair, relative_error
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from gks_eval.method.build import build
from gks_eval.method.declaration import Tokens
from gks_eval.method.hook import RoutedUpdate, share
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.reference import reference_update
from gks_eval.method.routers.arrow import LayerArrow
from gks_eval.method.setting import Setting
from gks_eval.method.siblings import Siblings, same_input
from gks_eval.method.weights import to_device

K, E, T = 16, 5, 7
WIDTHS = {"q_proj": 24, "k_proj": 8, "v_proj": 8}
PLAIN = "arrow;combine=outputs;top_k=2"


class Attention(nn.Module):
    """Three linear layers of one input, with routed updates."""

    def __init__(
        self,
        text: str = PLAIN,
        dtype: torch.dtype = torch.float32,
        *,
        ranks: Sequence[int] = (3,) * E,
        missing: bool = False,
        untrained: int | None = None,
        shared: bool = True,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.setting = Setting.parse(text)[0]
        self.pairs: dict[str, tuple[list[LoraPair], list[LoraPair]]] = {}
        self.vectors = torch.randn(E, K)
        self.updates: list[RoutedUpdate] = []
        for n, (name, width) in enumerate(WIDTHS.items()):
            layer = nn.Linear(K, width, bias=False, dtype=dtype)
            self.add_module(name, layer)
            pairs = [random_pair(r, K, width, seed=10 * n + e) for e, r in enumerate(ranks)]
            if missing:
                pairs[n] = no_update((width, K))
            if n == untrained:
                pairs[1] = LoraPair(pairs[1].A, torch.zeros_like(pairs[1].B), pairs[1].scaling)
            general = [random_pair(2, K, width, seed=99 + n)] * (":" in text)
            self.pairs[name] = pairs, general
            update = RoutedUpdate(layer, name)
            update.weights = build(
                pairs, general, self.setting, dtype=dtype, name=name, prepared=self.vectors
            )
            self.updates.append(update)
        if shared:
            share(self.updates)

    @property
    def siblings(self) -> Siblings:
        found = self.updates[0]._siblings
        assert found is not None
        return found

    def forward(self, x: torch.Tensor, names: Sequence[str] = tuple(WIDTHS)) -> list[torch.Tensor]:
        return [self.get_submodule(name)(x) for name in names]


def inputs(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, T, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Operators(TorchDispatchMode):
    """Counts dispatched operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators(module: Attention, *calls: tuple[torch.Tensor, Sequence[str]]) -> Counter[str]:
    with torch.no_grad(), Operators() as found:
        for x, names in calls:
            module(x, names)
    return found.counts


ALL = tuple(WIDTHS)
SHARED = [
    PLAIN,
    "arrow;combine=factors;top_k=2",
    "arrow:en;rule=delta;combine=outputs;top_k=2",
    "arrow;combine=outputs;top_k=-1;temperature=0.5",
    "arrow;combine=outputs;top_k=2;input_norm=layer",
    "random;combine=outputs;top_k=2",
    "shuffled;combine=factors;top_k=2",
    "mean_activation;combine=outputs;top_k=2",
    "phatgoose;combine=outputs",
]
ALONE = ["uniform", "spectr;top_k=2", "norm;top_k=2", "lag;top_k=2", "arrow;level=sequence;top_k=2"]


@pytest.mark.parametrize("text", SHARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_same_as_alone_and_as_plain_loops(text: str, dtype: torch.dtype) -> None:
    module, alone = Attention(text, dtype), Attention(text, dtype, shared=False)
    x = inputs(dtype)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ALL}
    for update in (*module.updates, *alone.updates):
        update.observer = lambda name, c_TE: seen[name].append(c_TE)
    shared, expected = module(x), alone(x)
    assert operators(module, (x, ALL))["topk"] <= 1
    for name, found, other in zip(ALL, shared, expected, strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        assert relative_error(found, other) < tolerance
        torch.testing.assert_close(seen[name][0], seen[name][1])
        experts, general = module.pairs[name]
        slow, shares = reference_update(
            x[0], experts, general, module.setting, name, module.vectors
        )
        torch.testing.assert_close(seen[name][0].double(), shares, atol=1e-4, rtol=1e-4)
        base = module.get_submodule(name).forward(x)[0].double()
        assert relative_error(found[0], base + slow) < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("case", [{"ranks": (3, 1, 4, 2, 2)}, {"missing": True}])
@pytest.mark.parametrize("text", [PLAIN, "arrow:en;rule=delta;combine=outputs;top_k=4"])
@torch.no_grad()
def test_unequal_ranks_and_experts_without_the_layer(text: str, case: dict[str, Any]) -> None:
    module, alone, x = Attention(text, **case), Attention(text, shared=False, **case), inputs()
    assert operators(module, (x, ALL))["topk"] == 1
    for found, expected in zip(module(x), alone(x), strict=True):
        assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("untrained", range(3))
@torch.no_grad()
def test_an_expert_that_is_dead_at_one_layer_is_alive_at_the_others(untrained: int) -> None:
    module = Attention("arrow;combine=outputs;top_k=4", untrained=untrained)
    seen: dict[str, torch.Tensor] = {}
    for update in module.updates:
        update.observer = seen.__setitem__
    assert operators(module, (inputs() - inputs(), ALL))["topk"] == 1  # all scores are equal
    for n, (name, c_TE) in enumerate(seen.items()):
        assert name == ALL[n]
        assert ((c_TE > 0).sum(1) == 4).all()
        if n == untrained:
            assert (c_TE[:, 1] == 0).all()
    module(inputs())
    others = [c_TE for n, c_TE in enumerate(seen.values()) if n != untrained]
    assert all((c_TE[:, 1] > 0).any() for c_TE in others)


@pytest.mark.parametrize("text", ALONE)
def test_other_routers_are_alone(text: str) -> None:
    assert Attention(text).updates[0]._siblings is None


def test_operators_of_three_layers() -> None:
    module, apart = Attention(), Attention(shared=False)
    operators(apart, (inputs(), ALL))  # transposes the factors once
    counts = [operators(one, (inputs(), ALL)) for one in (apart, module)]
    for name in ("topk", "_softmax", "new_zeros", "scatter_", "mul_"):
        assert [found[name] for found in counts] == [3, 1], name
    assert [found["addmm_"] for found in counts] == [3, 3]
    # Alone 13 operators per layer: three views, two products, split, abs, topk, softmax, zeros,
    # scatter, unsqueeze and mul. Shared 12 in all, and a view and a product per layer.
    assert counts[0].total() - counts[1].total() == 3 * 13 - (12 + 3 * 2)


@torch.no_grad()
def test_nothing_is_held_twice() -> None:
    module = Attention()
    reads = [one.read for one in module.siblings.weights]
    assert len({read.untyped_storage().data_ptr() for read in reads}) == 1
    whole = sum(one.nbytes() for one in (u.weights for u in Attention(shared=False).updates) if one)
    assert sum(one.nbytes() for one in module.siblings.weights) == whole
    read = reads[0].untyped_storage().nbytes()
    assert read == 4 * K * 3 * (3 * E + E)


@torch.no_grad()
def test_an_input_that_changes_is_read_again() -> None:
    module, alone = Attention(), Attention(shared=False)
    x = inputs()
    module.q_proj(x)
    x.mul_(-2).add_(1)
    assert relative_error(module.k_proj(x), alone.k_proj(x)) < 1e-6
    # Another tensor of the same values is another input.
    y = inputs(seed=1)
    module.q_proj(y)
    assert relative_error(module.v_proj(y.clone()), alone.v_proj(y)) < 1e-6


@torch.no_grad()
def test_the_same_tensor_twice_and_in_any_order() -> None:
    module, alone, x = Attention(), Attention(shared=False), inputs()
    expected = dict(zip(ALL, alone(x), strict=True))
    for names in (ALL, ALL, ("v_proj", "q_proj", "k_proj"), ("q_proj", "q_proj", "v_proj")):
        for name, found in zip(names, module(x, names), strict=True):
            assert relative_error(found, expected[name]) < 1e-6


@torch.no_grad()
def test_layers_of_different_inputs_stop_sharing() -> None:
    module, alone = Attention(), Attention(shared=False)
    for step in range(4):
        x, other = inputs(seed=step), inputs(seed=50 + step)
        found = [module.q_proj(x), *module(other, ("k_proj", "v_proj"))]
        expected = [alone.q_proj(x), *alone(other, ("k_proj", "v_proj"))]
        for one, two in zip(found, expected, strict=True):
            assert relative_error(one, two) < 1e-6
    assert operators(module, (inputs(), ALL))["topk"] == 3
    assert not module.siblings._kept


@torch.no_grad()
def test_one_interrupted_forward_does_not_end_sharing() -> None:
    module, x = Attention(), inputs()
    module.q_proj(inputs(seed=1))  # and the forward fails here
    module(x)
    assert operators(module, (x, ALL))["topk"] == 1


@torch.no_grad()
def test_nothing_is_kept_after_the_last_layer() -> None:
    module, x = Attention(), inputs()
    input_of = weakref.ref(x)
    module(x, ("q_proj", "k_proj"))
    assert module.siblings._kept
    del x
    gc.collect()
    assert input_of() is None, "the input is not kept alive"
    module(inputs())
    assert not module.siblings._kept


def test_with_gradients_every_layer_is_alone() -> None:
    module, alone = Attention(), Attention(shared=False)
    x = inputs()
    with torch.no_grad():
        module.q_proj(x)
    grads = []
    for one in (module, alone):
        y = x.clone().requires_grad_()
        torch.stack([found.sum() for found in one(y)]).sum().backward()
        assert y.grad is not None
        grads.append(y.grad)
    assert relative_error(grads[0], grads[1]) < 1e-6
    with torch.inference_mode():
        for found, expected in zip(module(x.clone()), alone(x.clone()), strict=True):
            assert relative_error(found, expected) < 1e-6


@torch.no_grad()
def test_autocast_changes_nothing_of_the_update() -> None:
    module, alone, x = Attention(), Attention(shared=False), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in zip(module(x), alone(x), strict=True):
            assert torch.equal(found, expected)


@torch.no_grad()
def test_other_hooks_weights_and_inputs() -> None:
    module, alone, x = Attention(), Attention(shared=False), inputs()
    seen: list[torch.Tensor] = []
    handle = module.k_proj.register_forward_hook(lambda _, __, output: seen.append(output))
    for found, expected in zip(module(x), alone(x), strict=True):
        assert relative_error(found, expected) < 1e-6
    handle.remove()
    # A hook of all modules keeps outputs before ours runs.
    everywhere = register_module_forward_hook(lambda _, __, output: seen.append(output))
    seen.clear()
    for update in (module.updates[0], alone.updates[0]):
        update.layer(x)
        assert torch.equal(seen[-1], update.layer.forward(x))
    everywhere.remove()
    # Other weights than those that were stacked, as of a setting that is applied, or none.
    module.updates[1].weights = alone.updates[1].weights
    module.updates[2].weights = None
    found = module(x)
    assert relative_error(found[1], alone(x)[1]) < 1e-6
    assert torch.equal(found[2], module.v_proj.forward(x))
    double = Attention().double()
    assert all(one.isfinite().all() for one in double(x.double()))


@torch.no_grad()
def test_copies_share_among_themselves() -> None:
    module, x = Attention(), inputs()
    expected = module(x)
    module.q_proj(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.siblings is not module.siblings
        assert not copied.siblings._kept
        for found, one in zip(copied(x), expected, strict=True):
            assert torch.equal(found, one)


def test_threads_do_not_mix() -> None:
    module, alone = Attention(), Attention(shared=False)
    worst: list[float] = []

    @torch.no_grad()
    def run(seed: int) -> None:
        for step in range(40):
            x = inputs(seed=100 * seed + step)
            pairs = zip(module(x), alone(x), strict=True)
            worst.append(max(relative_error(found, expected) for found, expected in pairs))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 160
    assert max(worst) < 1e-6
    with torch.no_grad():
        assert operators(module, (inputs(), ALL))["topk"] == 1


def test_compiled_every_layer_is_alone() -> None:
    module, alone, x = Attention(), Attention(shared=False), inputs()
    compiled: Any = torch.compile(module, backend="eager")
    with torch.no_grad():
        module.q_proj(x)
        for found, expected in zip(compiled(x), alone(x), strict=True):
            assert relative_error(found, expected) < 1e-6


def test_on_another_device_the_weights_are_those_of_a_layer_alone() -> None:
    held = Attention().siblings.weights[1]
    back = to_device(held, torch.device("cpu"))
    expected = Attention(shared=False).updates[1].weights
    assert held.directions is not None
    assert expected is not None
    assert back.directions is None
    assert torch.equal(back.read, expected.read)


def test_which_layers_are_siblings() -> None:
    names = ["a.0.q_proj", "a.0.k_proj", "a.0.o_proj", "a.1.q_proj", "m.gate_proj", "m.up_proj"]
    assert same_input(names) == [names[:2], names[2:3], names[3:4], names[4:]]
    module = Attention()
    weights = [update.weights for update in module.updates]
    assert Siblings.of(weights[:1]) is None
    wide = Attention(dtype=torch.float64, shared=False)
    assert Siblings.of([update.weights for update in wide.updates]) is None

    class Centred(LayerArrow):
        def scores(self, tokens: Tokens) -> torch.Tensor:
            return tokens.scores - tokens.scores.mean(1, keepdim=True)

    plain = [update.weights for update in Attention(shared=False).updates]
    foreign = [replace(one, router=Centred(2, 1.0, None)) for one in plain if one is not None]
    assert Siblings.of(foreign) is None
    other = Attention("arrow;combine=outputs;top_k=3", shared=False).updates[1].weights
    assert Siblings.of([Attention(shared=False).updates[0].weights, other]) is None
