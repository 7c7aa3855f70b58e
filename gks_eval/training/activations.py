"""The mean of every layer's inputs over samples of an expert's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gks_eval.training.examples import Example

__all__ = ["mean_activations"]


def mean_activations(
    model: nn.Module,
    layers: Sequence[str],
    examples: Sequence[Example],
    on_sample: Callable[[], None] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Return the mean input of each layer, (K,) float32 on the CPU.

    Each sample contributes the mean over its tokens, so that long samples do not count more.

    Args:
        model: The base with the expert attached, in evaluation mode.
        layers: Names of the layers.
        examples: The samples.
        on_sample: Called after every sample.
    """
    device = next(model.parameters()).device
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: torch.Tensor
        (x,) = (*args, *kwargs.values())
        mean = x.reshape(-1, x.shape[-1]).float().mean(0).double().cpu()
        sums[name] = sums[name] + mean if name in sums else mean

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: add(name, args, kwargs), with_kwargs=True
        )
        for name in layers
    ]
    try:
        with torch.inference_mode():
            for example in examples:
                model(input_ids=torch.tensor([example.input_ids], device=device), use_cache=False)
                on_sample()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / len(examples)).float() for name, total in sums.items()}
