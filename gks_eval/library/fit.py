"""Checks that a library fits a base model, by the names and shapes of the layers.

This needs no weights. If they are loaded, copies of them in the adapters are compared too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gks_eval.errors import CompatibilityError
from gks_eval.library.base_copies import check_copies
from gks_eval.library.load import Library
from gks_eval.library.peft_adapter import Adapter
from gks_eval.method.lora import LoraPair

__all__ = [
    "check_fit",
    "check_shapes",
    "layer_shape",
    "linear_layers",
    "linear_shapes",
    "meta_model",
    "routable_layers",
]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers by name: nn.Linear and bitsandbytes' 4- and 8-bit subclasses."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def routable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return `linear_layers` and GPT-2's Conv1D, a linear layer that stores W^T, by name."""
    from transformers.pytorch_utils import Conv1D

    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}


def layer_shape(layer: Any) -> tuple[int, int]:
    """Return (D, K) of a routable layer; a quantised weight's own shape is packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.nf, layer.nx


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return `layer_shape` of all routable layers by name."""
    return {name: layer_shape(layer) for name, layer in routable_layers(model).items()}


def check_fit(library: Library, model: nn.Module, base: str) -> None:
    """Check that the adapters update exactly the layers that PEFT would adapt on this base.

    Args:
        library: The adapters.
        model: The base, without a library; on the meta device its weights are not compared.
        base: The base model's name in messages.

    Raises:
        CompatibilityError: A layer is missing or has another shape, an adapter lacks layers that
            its config names, or it holds weights of another base.
    """
    shapes = linear_shapes(model)
    for adapter in library.adapters:
        where = f"library {library.name} does not fit {base}"
        made_for = adapter.base_model or "another model"
        check_shapes(adapter.pairs, model, where, made_for, shapes)
        _check_targets(adapter, shapes, model, where)
        check_copies(adapter, model, base)


def check_shapes(
    pairs: Mapping[str, LoraPair],
    model: nn.Module,
    where: str,
    made_for: str,
    shapes: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Check that a model has the layers of some updates.

    Args:
        pairs: Updates by layer.
        model: The base.
        where: What messages start with.
        made_for: The model that the updates were made for, for messages.
        shapes: `linear_shapes` of the model, if they are known.

    Raises:
        CompatibilityError: A layer is missing or has another shape.
    """
    shapes = linear_shapes(model) if shapes is None else shapes
    missing = [module for module in pairs if module not in shapes]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CompatibilityError(
            f"{where}: it has no linear layer {missing[0]}{more}; "
            + (_why_missing(missing[0], model, shapes) or f"the adapters were made for {made_for}.")
        )
    for module, pair in pairs.items():
        if pair.shape != shapes[module]:
            raise CompatibilityError(
                f"{where}: {module} has shape {shapes[module]} and the adapters are for "
                f"{pair.shape}; they were made for {made_for}."
            )


def _why_missing(module: str, model: nn.Module, layers: Iterable[str]) -> str | None:
    if wrapped := next((name for name in layers if name.endswith(".base_layer")), None):
        return (
            f"{wrapped.removesuffix('.base_layer')} carries an adapter of PEFT; give the base "
            "alone, as `model.unload()` returns it, or `model.merge_and_unload()` to keep it."
        )
    if longer := next((name for name in layers if name.endswith(f".{module}")), None):
        return (
            f"it has {longer}, so the adapter was trained on the model without its head; train it "
            "on AutoModelForCausalLM."
        )
    if ".experts." in module:
        for name, parameter in model.named_parameters():
            if "experts" in name and parameter.ndim == 3:
                return (
                    f"the installed transformers fuses all experts of a layer into {name}, which "
                    "PEFT adapts as a parameter and routed layers do not support; use adapters "
                    "that leave the experts out."
                )
    try:
        kind = type(model.get_submodule(module)).__name__
    except AttributeError:
        return None
    return (
        f"that module is of type {kind}, and only nn.Linear, Conv1D and bitsandbytes' layers can "
        "be routed; use adapters that leave it out."
    )


def _check_targets(
    adapter: Adapter, shapes: dict[str, tuple[int, int]], model: nn.Module, where: str
) -> None:
    targets = adapter.targets
    if targets.modules is None:
        targets = targets.with_modules(_peft_default(model))
    layers = set(shapes)
    if targets.all_linear and (head := _head_name(model)):
        layers.discard(head)
    named = targets.named(layers)
    if left_out := sorted(named - adapter.pairs.keys()):
        raise CompatibilityError(
            f"{where}: adapter {adapter.name!r} leaves out {left_out[0]}"
            + (f" and {len(left_out) - 1} more" if len(left_out) > 1 else "")
            + ", which its config names; it was made for a model with fewer layers (if that is "
            "intended, set layers_to_transform in the config)."
        )
    if unnamed := sorted(adapter.pairs.keys() - named):
        raise CompatibilityError(
            f"{where}: adapter {adapter.name!r} updates {unnamed[0]}, which its config does not "
            "name; write target_modules into it."
        )


def _peft_default(model: nn.Module) -> tuple[str, ...]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    kind = getattr(getattr(model, "config", None), "model_type", None)
    return tuple(DEFAULTS.get(kind, ()))


def _head_name(model: Any) -> str | None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((name for name, module in model.named_modules() if module is head), None)


def meta_model(config: object, **options: bool) -> nn.Module:
    """Return the causal LM that a transformers config describes, on the meta device.

    No weights are read or allocated.

    Args:
        config: The config.
        options: For ``from_config``, such as ``trust_remote_code``.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, **options
        )
    return model
