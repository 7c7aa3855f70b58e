"""Attaching, swapping and detaching on whole tiny models of three architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from common import (
    FAMILIES,
    TARGETS,
    assert_sentence,
    edit_json,
    load_tiny,
    relative_error,
    save_library,
)
from torch import nn

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.load import Library, load_library
from gks_eval.method.build import build
from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting
from gks_eval.model.inject import Attachment, attach

PAPER = Setting()
EXACT = Setting(rule="delta", combine="outputs", subtract=("en", "de"), top_k=2)
SETTINGS = [
    PAPER,
    EXACT,
    Setting(router="uniform", rule="orthogonal", subtract=("fr",)),
    Setting(router="beta", subtract=()),
    Setting(router="none"),
]
TOKENS = torch.randint(4, 260, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def library(tiny_library: Callable[..., Path]) -> Library:
    return load_library(str(tiny_library("phi3")))


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("phi3")


@torch.no_grad()
def logits(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(tokens).logits


def hooks(module: nn.Module) -> list[RoutedUpdate]:
    return [hook for hook in module._forward_hooks.values() if isinstance(hook, RoutedUpdate)]


def record(attachment: Attachment) -> dict[str, list[torch.Tensor]]:
    """Have the coefficients of every forward kept, by layer."""
    seen: dict[str, list[torch.Tensor]] = {}
    attachment.observe(lambda name, c_TE: seen.setdefault(name, []).append(c_TE.clone()))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_detaching_restores_the_model_bit_for_bit(
    family: str, tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    library = load_library(str(tiny_library(family)))
    model = tiny_model(family)
    tree = [(name, id(module)) for name, module in model.named_modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    text, before = str(model), logits(model)
    with attach(model, library, SETTINGS[0]) as attachment:
        hooked = {n for n, m in model.named_modules() if hooks(m)}
        assert hooked == set(library.modules) == set(attachment.layers)
        assert len(hooked) == 2 * len(TARGETS[family])
        assert [(name, id(module)) for name, module in model.named_modules()] == tree
        seen = [logits(model)]
        for setting in SETTINGS[1:]:
            attachment.apply(setting)
            seen.append(logits(model))
    for n, one in enumerate(seen):
        assert all(relative_error(one, other) > 1e-3 for other in seen[:n]), SETTINGS[n]
    assert torch.equal(seen[-1], before), "router=none is the base alone"
    assert not any(hooks(module) for module in model.modules())
    assert [(name, id(module)) for name, module in model.named_modules()] == tree
    assert str(model) == text
    state = model.state_dict()
    assert list(state) == list(weights)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == pointers
    assert torch.equal(logits(model), before)


def test_detaching_twice_and_after_an_error(model: Any, library: Library) -> None:
    before = logits(model)
    attachment = attach(model, library, PAPER)
    shown = f"{attachment.setting!r}, layers: {len(library.modules)}"
    assert repr(attachment) == f"Attachment({library.name!r}, {shown})"
    attachment.detach()
    attachment.detach()
    assert repr(attachment) == f"Attachment({library.name!r}, detached)"
    with pytest.raises(UsageError) as caught:
        attachment.apply(PAPER)
    assert_sentence(caught.value, "detached", "again")
    with pytest.raises(RuntimeError, match="inside"), attach(model, library, PAPER):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), before)


def test_swapping_back_gives_the_same_numbers(model: Any, library: Library) -> None:
    before = {
        name: (a.pairs, [p.A.clone() for p in a.pairs.values()])
        for name, a in library.experts.items()
    }
    with attach(model, library, SETTINGS[0]) as attachment:
        first = []
        for setting in SETTINGS:
            attachment.apply(setting)
            assert attachment.setting == setting
            first.append(logits(model))
        for setting, expected in reversed(list(zip(SETTINGS, first, strict=True))):
            attachment.apply(setting)
            assert torch.equal(logits(model), expected)
    # The same as a model that never knew another setting.
    fresh = load_tiny(Path(model.name_or_path))
    with attach(fresh, library, SETTINGS[1]):
        assert torch.equal(logits(fresh), first[1])
    for pairs, copies in before.values():
        assert all(torch.equal(p.A, A) for p, A in zip(pairs.values(), copies, strict=True))


def test_a_setting_that_fails_leaves_the_one_before(model: Any, library: Library) -> None:
    with attach(model, library, PAPER) as attachment:
        expected = logits(model)
        with pytest.raises(UsageError, match="it"):
            attachment.apply(Setting(subtract=("it",)))
        assert attachment.setting == PAPER
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("failures", [1, 100])
def test_an_error_halfway_leaves_the_setting_before_or_the_base(
    failures: int, model: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = logits(model)
    with attach(model, library, PAPER) as attachment:
        expected = logits(model)
        left, calls = failures, 0

        def broken(*given: Any, **named: Any) -> Any:
            nonlocal left, calls
            calls += 1
            if calls > 2 and left:  # not at the first layers
                left -= 1
                raise MemoryError
            return build(*given, **named)

        monkeypatch.setattr("gks_eval.model.inject.build", broken)
        with pytest.raises(MemoryError):
            attachment.apply(EXACT)
        if failures == 1:
            assert attachment.setting == PAPER
            assert torch.equal(logits(model), expected)
        else:  # the setting before cannot be restored either
            assert attachment.setting is None
            assert torch.equal(logits(model), base)


def test_attaching_twice_is_refused(model: Any, library: Library) -> None:
    attachment = attach(model, library, PAPER)
    expected = logits(model)
    with pytest.raises(UsageError) as caught:
        attach(model, library, PAPER)
    assert_sentence(caught.value, "already", "detach")
    assert torch.equal(logits(model), expected)
    attachment.detach()


def test_a_library_for_another_model_leaves_the_model_alone(
    tiny_library: Callable[..., Path], model: Any
) -> None:
    tree = [id(module) for module in model.modules()]
    with pytest.raises(CompatibilityError, match="does not fit"):
        attach(model, load_library(str(tiny_library("llama"))), PAPER)
    assert [id(module) for module in model.modules()] == tree


def test_a_failure_while_attaching_leaves_the_model_alone(
    model: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = [id(module) for module in model.modules()]
    monkeypatch.setattr("gks_eval.model.inject.build", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attach(model, library, PAPER)
    assert [id(module) for module in model.modules()] == tree


def test_unequal_adapters_run_by_the_exact_rule_alone(
    tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    base = tiny_base("phi3")
    unequal = {"beta": {"r": 2}, "de": {"lora_alpha": 4, "use_rslora": True}}
    folder = save_library(tmp_path, base, "phi3", adapters=unequal)
    library = load_library(str(folder))
    model = load_tiny(base)
    for setting in (Setting(), Setting(rule="orthogonal"), Setting(rule="delta")):
        with pytest.raises(CompatibilityError) as caught:
            attach(model, library, setting)
        assert_sentence(caught.value, str(folder), "o_proj", "4 and 2", "preset=exact")
    with pytest.raises(CompatibilityError, match="rule=factors needs one scaling, not 4 and 2"):
        attach(model, library, Setting(router="alpha", subtract=("de",)))
    exact = Setting(rule="delta", combine="outputs", top_k=2)
    with attach(model, library, exact):
        layer = model.model.layers[1].self_attn.o_proj
        x = torch.randn(1, 30, 64)
        with torch.no_grad():
            found = layer(x) - layer.forward(x)  # which calls no hooks
        pairs = library.layer("model.layers.1.self_attn.o_proj", exact)
        expected = oracle.routed(x[0], *pairs, exact)
        clear = expected.tie_gap > 1e-4
        assert clear.sum() >= 29
        assert relative_error(found[0][clear], expected.update[clear]) < 1e-4


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.router}-{s.rule}-{s.combine}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_layer_with_and_without_gradients(
    setting: Setting, dtype: torch.dtype, library: Library, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("phi3", dtype=dtype)
    with attach(model, library, setting):
        layer = model.model.layers[0].self_attn.qkv_proj
        x = torch.randn(2, 7, 64).to(dtype)
        with torch.no_grad():
            without = layer(x)
            base = layer.forward(x)
        with torch.inference_mode():
            inference = layer(x)
        recording = layer(x.clone().requires_grad_())
        assert recording.requires_grad
        assert without.dtype == recording.dtype == dtype
        assert torch.equal(inference, without)
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
        assert relative_error(recording.detach(), without) < tolerance
        if (weights := hooks(layer)[0].weights) is not None:
            update = routed_update(x.flatten(0, 1), weights)[0].view_as(base)
            assert relative_error(without, base.double() + update.double()) < tolerance
        # Neither the input nor anything of the layer is written to.
        with torch.no_grad():
            assert torch.equal(layer(x), without)
            assert torch.equal(layer.forward(x), base)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (0, 64), (2, 0, 64), (1, 1, 64), (2, 3, 4, 64)])
def test_any_leading_shape(shape: tuple[int, ...], model: Any, library: Library) -> None:
    with attach(model, library, EXACT), torch.no_grad():
        layer = model.model.layers[0].self_attn.o_proj
        x = torch.randn(shape)
        found = layer(x)
        assert found.shape == shape
        update = routed_update(x.reshape(-1, 64), hooks(layer)[0].weights)[0]
        expected = layer.forward(x).reshape(-1, 64) + update
        torch.testing.assert_close(found.reshape(-1, 64), expected)


@torch.no_grad()
def test_inputs_that_are_not_contiguous(model: Any, library: Library) -> None:
    with attach(model, library, EXACT):
        for layer in (
            model.model.layers[0].self_attn.qkv_proj,
            model.model.layers[1].self_attn.o_proj,
        ):
            wide = torch.randn(6, 3, 128)
            for x in (
                wide.transpose(0, 1)[..., :64],
                wide[..., ::2],
                wide[:, :1, :64].expand(6, 5, 64),
            ):
                assert not x.is_contiguous()
                torch.testing.assert_close(layer(x), layer(x.contiguous()))


@torch.no_grad()
def test_the_outputs_that_other_hooks_hold_are_not_written_to(model: Any, library: Library) -> None:
    layer = model.model.layers[0].self_attn.o_proj
    x = torch.randn(1, 9, 64)
    alone, patch = layer(x), torch.zeros(1, 9, 64)
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with attach(model, library, EXACT):
        update = layer(x) - alone
        assert update.abs().max() > 0.1
        assert torch.equal(seen[0], alone)
    layer.register_forward_hook(lambda _module, _inputs, _output: patch)
    with attach(model, library, EXACT):
        for _ in range(2):
            torch.testing.assert_close(layer(x), update)
    assert not patch.any()


def test_autocast_leaves_the_routed_part_in_its_own_type(model: Any, library: Library) -> None:
    with attach(model, library, PAPER), torch.no_grad():
        layer = model.model.layers[0].self_attn.qkv_proj
        x = torch.randn(1, 9, 64)
        update = routed_update(x[0], hooks(layer)[0].weights)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            base, found = layer.forward(x), layer(x)
            whole = model(TOKENS).logits
        assert base.dtype == found.dtype == torch.bfloat16
        assert torch.equal(found[0], base[0] + update.bfloat16())
        assert relative_error(whole.float(), model(TOKENS).logits) < 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", [PAPER, EXACT], ids=["paper", "exact"])
def test_the_observer_sees_shares_and_changes_nothing(
    family: str,
    setting: Setting,
    tiny_library: Callable[..., Path],
    tiny_model: Callable[..., Any],
) -> None:
    library, model = load_library(str(tiny_library(family))), tiny_model(family)
    with attach(model, library, setting) as attachment:
        expected = logits(model)
        seen = record(attachment)
        assert torch.equal(logits(model), expected)
        assert set(seen) == set(library.modules)
        for (c_TE,) in seen.values():
            assert c_TE.shape == (TOKENS.numel(), 4)
            assert c_TE.dtype == torch.float32
            torch.testing.assert_close(c_TE.sum(1), torch.ones(TOKENS.numel()))
            assert ((c_TE > 0).sum(1) == setting.parameters["top_k"]).all()
        attachment.apply(Setting(router="uniform", subtract=()))
        seen.clear()
        logits(model)
        assert all(torch.equal(c, torch.full((26, 4), 0.25)) for (c,) in seen.values())
        attachment.observe(None)
        seen.clear()
        logits(model)
        assert not seen


def test_the_observed_layers_follow_the_loops(model: Any, library: Library) -> None:
    """Inputs as they really reach the layers of a model, rather than Gaussian ones."""
    setting = EXACT
    inputs: dict[str, torch.Tensor] = {}
    with attach(model, library, setting) as attachment:
        seen = record(attachment)
        hooks = [
            update.layer.register_forward_pre_hook(
                lambda _, args, name=name: inputs.__setitem__(name, args[0].flatten(0, 1))
            )
            for name, update in attachment.layers.items()
        ]
        logits(model)
        for hook in hooks:
            hook.remove()
    for name, x in inputs.items():
        expected = oracle.routed(x, *library.layer(name, setting), setting)
        clear = expected.tie_gap > 1e-4
        assert clear.sum() >= len(x) - 1
        assert relative_error(seen[name][0][clear], expected.shares[clear]) < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("setting", [PAPER, EXACT], ids=["paper", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_quantised_layers(
    bits: int,
    setting: Setting,
    dtype: torch.dtype,
    library: Library,
    tiny_model: Callable[..., Any],
) -> None:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4"
    )
    model = tiny_model("phi3", dtype=dtype, quantization_config=config)
    packed = {n: p.detach().clone() for n, p in model.named_parameters()}
    with attach(model, library, setting) as attachment:
        routed = logits(model)
        assert routed.isfinite().all()
        for name, update in attachment.layers.items():
            assert update.weights is not None
            assert update.weights.read.dtype == dtype
            x = torch.randn(1, 12, 64).to(dtype)
            delta = routed_update(x[0], build(*library.layer(name, setting), setting, dtype=dtype))[
                0
            ]
            tolerance = 1e-5 if dtype == torch.float32 else 2**-7
            expected = update.layer.forward(x)[0].double() + delta.double()
            assert relative_error(update.layer(x)[0], expected) < tolerance
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, packed[name])
    assert relative_error(logits(model), routed) > 1e-2


@torch.no_grad()
def test_a_model_in_bfloat16_stays_near_float32(
    library: Library, tiny_model: Callable[..., Any]
) -> None:
    exact, rounded = tiny_model("phi3"), tiny_model("phi3", dtype=torch.bfloat16)
    shares = []
    for model in (exact, rounded):
        with attach(model, library, EXACT) as attachment:
            seen = record(attachment)
            logits(model)
            shares.append(torch.cat([c for (c,) in seen.values()]) > 0)
    flips = int((shares[0] != shares[1]).any(1).sum())
    # About one decision in twenty-five differs between the two types on real models.
    assert flips <= 0.15 * len(shares[0]), f"{flips} of {len(shares[0])} decisions differ"


@pytest.mark.parametrize("loftq", ["alpha", "beta"])
def test_loftq_concerns_the_layers_of_its_own_adapters(
    loftq: str,
    tmp_path: Path,
    tiny_base: Callable[..., Path],
    tiny_model: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from transformers import BitsAndBytesConfig

    folder = save_library(
        tmp_path, tiny_base("phi3"), "phi3", experts=("alpha", "beta"), general=(),
        adapters={"beta": {"target_modules": ["lm_head"]}},
    )  # fmt: skip
    edit_json(folder / "experts" / loftq / "adapter_config.json", init_lora_weights="loftq")
    model = tiny_model("phi3", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    attach(model, load_library(str(folder)), "arrow;preset=exact").detach()
    # bitsandbytes leaves the head as it is.
    warned = [record.getMessage() for record in caplog.records if "LoftQ" in record.getMessage()]
    assert [loftq in message for message in warned] == ([] if loftq == "alpha" else [True])
