"""PEFT's Arrow with the adapters of a library, computing the same function as ours.

PEFT estimates its prototypes by power iteration from a random start, when a layer first runs. They
are replaced by our exact ones, so that both sides choose the same experts; the cost of computing
prototypes is a start-up cost and is not compared. PEFT's adapters have the base's dtype, as ours
have; PEFT's default for 16-bit bases is float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gks_eval.library.load import Library
from gks_eval.method.declaration import Layer
from gks_eval.method.setting import Setting

__all__ = ["ROUTER", "arrow_delta", "arrow_layers", "peft_arrow", "peft_setting", "twin"]

ROUTER = "arrow_router"
"""PEFT's name of the adapter that routes."""


def peft_setting(library: Library, top_k: int = 3) -> Setting:
    """Return PEFT's Arrow as a setting: rule factors, combine outputs, mean of general adapters."""
    return Setting.from_arguments(
        subtract="avg" if library.general else "none",
        rule="factors",
        combine="outputs",
        top_k=min(top_k, len(library.experts)),
    )


def twin(model: nn.Module) -> nn.Module:
    """Return a model of separate modules that shares all weights with `model`.

    Adapters are attached to modules, so each contestant needs separate ones. Copies of the weights
    would need memory, and contestants would compete for the cache.
    """
    shared: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def peft_arrow(model: nn.Module, library: Library, setting: Setting) -> Any:
    """Build PEFT's Arrow model.

    Args:
        model: The base, which is changed in place.
        library: The library; PEFT reads the adapters from their folders.
        setting: The setting, from `peft_setting`.

    Returns:
        PEFT's model, in evaluation mode, ready for its first forward.
    """
    from peft import ArrowConfig, create_arrow_model

    general = [str(library.general[name].folder) for name in library.languages(setting)]
    built: Any = create_arrow_model(
        base_model=model,
        task_specific_adapter_paths=[str(one.folder) for one in library.experts.values()],
        general_adapter_paths=general or None,
        arrow_config=ArrowConfig(
            top_k=setting.parameters["top_k"],
            router_temperature=setting.parameters["temperature"],
            use_gks=bool(general),
            rng_seed=0,
        ),
        autocast_adapter_dtype=False,
    ).eval()
    layers = arrow_layers(built)
    assert set(layers) == set(library.modules), "PEFT and we adapt the same layers"
    for name, layer in layers.items():
        pairs, subtracted = library.layer(name, setting)
        rule, parameters = setting.rule_method()
        residuals = [rule(pair, subtracted, parameters) for pair in pairs]
        for factors in (layer.lora_A, layer.lora_B):
            factors.to(layer.base_layer.weight.device, _adapter_dtype(layer))
        weight = layer.lora_A["task_0"].weight
        arrow = layer.lora_arrow[ROUTER]
        arrow.gen_know_sub(
            layer.lora_A, layer.lora_B
        )  # now and in place; PEFT does it at the first forward
        router, parameters = setting.router_method()
        directions = router(Layer(name, residuals), parameters).directions
        assert directions is not None, "PEFT's Arrow has prototypes"
        found = directions.to(weight.device, weight.dtype)
        arrow.register_buffer("prototypes", found, persistent=False)
        arrow._protos_ready = True
    return built


def _adapter_dtype(layer: Any) -> torch.dtype:
    weight: torch.Tensor = layer.base_layer.weight
    return weight.dtype if weight.is_floating_point() else torch.bfloat16


def arrow_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's routed layers, by the name of the base's layer that each wraps."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_arrow")
    }


def arrow_delta(layer: Any, x_BTK: torch.Tensor) -> torch.Tensor:
    """Return PEFT's update alone, (B, T, D): its layer's forward without the base's product."""
    delta: torch.Tensor = layer.lora_arrow[ROUTER](
        x_BTK,
        lora_A=layer.lora_A,
        lora_B=layer.lora_B,
        dropout=layer.lora_dropout[ROUTER],
        scaling=layer.scaling,
    )
    return delta
