"""Does a library fit a base model? Decided by the names and shapes of its linear layers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from gks_eval.errors import CompatibilityError
from gks_eval.library import Library

__all__ = ["check_fit", "linear_layers", "linear_shapes", "meta_model", "meta_shapes"]

_INDEX = re.compile(r"\.(\d+)\.")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers by name: nn.Linear and bitsandbytes' 4- and 8-bit subclasses."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (D, K) of all linear layers by name; a quantised weight's own shape is packed."""
    return {name: (m.out_features, m.in_features) for name, m in linear_layers(model).items()}


def check_fit(library: Library, shapes: Mapping[str, tuple[int, int]], base: str) -> None:
    """Check that every layer the adapters update is there, of the right shape, and none left out.

    Args:
        library: The adapters.
        shapes: (D, K) of the base's linear layers by name, see `linear_shapes`.
        base: How messages call the base model.

    Raises:
        CompatibilityError: A layer is missing or of another shape, or the adapters stop short of
            the base's depth without their config saying so.
    """
    adapter = next(iter(library.experts.values()))
    where = f"library {library.name} does not fit {base}"
    missing = [module for module in adapter.pairs if module not in shapes]
    if missing:
        raise CompatibilityError(
            f"{where}: it has no linear layer {missing[0]}"
            + (f" (nor {len(missing) - 1} more)" if len(missing) > 1 else "")
            + f"; the adapters were made for {adapter.base_model or 'another model'}."
        )
    for module, pair in adapter.pairs.items():
        if pair.shape != shapes[module]:
            raise CompatibilityError(
                f"{where}: {module} is of shape {shapes[module]} and the adapters are for "
                f"{pair.shape}; they were made for {adapter.base_model or 'another model'}."
            )
    if adapter.partial_layers:
        return
    kinds = {_INDEX.sub(".*.", module, count=1) for module in adapter.pairs}
    left_out = sorted(
        module
        for module in shapes
        if module not in adapter.pairs and _INDEX.sub(".*.", module, count=1) in kinds
    )
    if left_out:
        raise CompatibilityError(
            f"{where}: the adapters leave out {left_out[0]}"
            + (f" and {len(left_out) - 1} more like it" if len(left_out) > 1 else "")
            + "; they were made for a shallower model (say layers_to_transform in their config if "
            "that is meant)."
        )


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


def meta_shapes(config: object) -> dict[str, tuple[int, int]]:
    """Return `linear_shapes` of the causal LM that a transformers config describes."""
    return linear_shapes(meta_model(config))
