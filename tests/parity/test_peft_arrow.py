"""Against PEFT's own Arrow (`peft.create_arrow_model`): rule factors, combine outputs, float32.

PEFT's prototypes come from power iteration, so they are handed over, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import load_tiny, relative_error

from gks_eval.library.load import Library, load_library
from gks_eval.method.build import build
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach

FAMILIES = ("phi3", "llama")
GENERAL = {"none": (), "en": ("en",), "avg": ("en", "de", "fr")}


def peft_arrow(base: Path, folder: Path, general: tuple[str, ...], top_k: int, **how: Any) -> Any:
    """Have PEFT build its Arrow model over the same adapters."""
    from peft import ArrowConfig, create_arrow_model

    library = load_library(str(folder))
    return create_arrow_model(
        base_model=load_tiny(base),
        task_specific_adapter_paths=[str(folder / "experts" / n) for n in library.experts],
        general_adapter_paths=[str(folder / "general" / n) for n in general] or None,
        arrow_config=ArrowConfig(top_k=top_k, use_gks=bool(general), rng_seed=0, **how),
    ).eval()


def arrow_layers(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_arrow")
    }


def hand_over_prototypes(library: Library, setting: Setting, model: Any) -> None:
    """Put our prototypes into PEFT's layers."""
    for name, layer in arrow_layers(model).items():
        experts, general = library.layer(name, setting)
        weights = build(experts, general, setting, dtype=torch.bfloat16)  # not fused into `read`
        arrow = layer.lora_arrow["arrow_router"]
        arrow.register_buffer("prototypes", weights.directions, persistent=False)
        arrow._protos_ready = True


def peft_setting(general: tuple[str, ...], top_k: int, temperature: float = 1.0) -> Setting:
    return Setting(
        subtract=general, rule="factors", combine="outputs", top_k=top_k, temperature=temperature
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("general", GENERAL.values(), ids=GENERAL.keys())
@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (3, 0.7), (4, 1.0)])
def test_layers(
    family: str,
    general: tuple[str, ...],
    top_k: int,
    temperature: float,
    tiny_base: Callable[..., Path],
    tiny_library: Callable[..., Path],
) -> None:
    folder = tiny_library(family)
    library = load_library(str(folder))
    setting = peft_setting(general, top_k, temperature)
    model = peft_arrow(tiny_base(family), folder, general, top_k, router_temperature=temperature)
    hand_over_prototypes(library, setting, model)
    layers = arrow_layers(model)
    assert set(layers) == set(library.modules)
    for name, layer in layers.items():
        experts, subtracted = library.layer(name, setting)
        x = torch.randn(2, 17, layer.in_features)
        ours = routed_update(x.flatten(0, 1), build(experts, subtracted, setting, dtype=x.dtype))[0]
        with torch.no_grad():
            theirs = layer(x) - layer.base_layer(x)
        # PEFT's update is seen through a float32 sum with the base's output: 1e-5 of the larger.
        scale = layer.base_layer(x).abs().max().clamp_min(theirs.abs().max())
        assert float((ours.view_as(theirs) - theirs).abs().max() / scale) < 1e-5
        direct = layer.lora_arrow["arrow_router"](
            x, layer.lora_A, layer.lora_B, torch.nn.Identity(), layer.scaling
        )
        assert relative_error(ours.view_as(direct), direct) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("general", GENERAL.values(), ids=GENERAL.keys())
def test_whole_models(
    family: str,
    general: tuple[str, ...],
    tiny_base: Callable[..., Path],
    tiny_library: Callable[..., Path],
) -> None:
    folder = tiny_library(family)
    library = load_library(str(folder))
    setting = peft_setting(general, top_k=2)
    theirs = peft_arrow(tiny_base(family), folder, general, top_k=2)
    hand_over_prototypes(library, setting, theirs)
    ours = load_tiny(tiny_base(family))
    tokens = torch.randint(4, 260, (3, 24))
    with torch.no_grad():
        base = ours(tokens).logits
        expected = theirs(tokens).logits
        with attach(ours, library, setting):
            found = ours(tokens).logits
        assert torch.equal(ours(tokens).logits, base)
    assert relative_error(base, expected) > 0.05, "the adapters must matter in this test"
    # A near-tie that flips moves its token and those after it in the row; all else agrees.
    off = (found - expected).abs().amax(-1) > 1e-5 * expected.abs().max()
    assert off.any(dim=1).sum() <= 1, f"{int(off.sum())} of {off.numel()} tokens differ"


def test_prototypes_of_power_iteration_converge_to_ours(
    tiny_base: Callable[..., Path], tiny_library: Callable[..., Path]
) -> None:
    folder = tiny_library("phi3")
    library = load_library(str(folder))
    setting = peft_setting(("en", "de", "fr"), top_k=2)
    model = peft_arrow(tiny_base("phi3"), folder, setting.subtract, top_k=2)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))  # PEFT subtracts, then builds prototypes, at first use
    for name, layer in arrow_layers(model).items():
        experts, general = library.layer(name, setting)
        ours = build(experts, general, setting, dtype=torch.bfloat16).directions
        assert ours is not None
        arrow = layer.lora_arrow["arrow_router"]
        for e, expert in enumerate(arrow.task_adapter_names):
            A, B = layer.lora_A[expert].weight, layer.lora_B[expert].weight
            theirs = arrow.top_right_singular_vec_from_BA(A, B, iters=2000)
            assert abs(float(ours[e] @ theirs)) == pytest.approx(1.0, abs=1e-4)
