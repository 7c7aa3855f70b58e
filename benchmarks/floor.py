"""The least that routing by hooks can cost: hooks that do nothing, and the two products alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.peers import peft_setting, twin
from gks_eval.library.load import Library
from gks_eval.method.build import build
from gks_eval.method.weights import RoutedWeights

__all__ = ["floor_transformers"]


def floor_transformers(model: Any, library: Library) -> dict[str, Any]:
    """Return the transformers of ``hooks`` and ``products``, on the weights of `model`.

    ``products`` reads all experts of each layer and writes all, without a choice between them.
    """
    setting = peft_setting(library)
    found: dict[str, Any] = {"hooks": twin(model), "products": twin(model)}
    for name in library.modules:
        layer = found["products"].get_submodule(name)
        weight = layer.weight
        weights = build(
            *library.layer(name, setting), setting, dtype=weight.dtype, device=weight.device
        )
        layer.register_forward_hook(_Products(weights), with_kwargs=True)
        found["hooks"].get_submodule(name).register_forward_hook(_nothing, with_kwargs=True)
    return {who: getattr(one, one.base_model_prefix) for who, one in found.items()}


def _nothing(layer: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
    del layer, args, kwargs
    return output


class _Products:
    def __init__(self, weights: RoutedWeights) -> None:
        self.rows = weights.write.shape[0]
        self.columns, self.write = weights.read_columns, weights.write

    def __call__(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        del layer
        x: torch.Tensor
        (x,) = (*args, *kwargs.values())
        z_TM = torch.mm(x.reshape(-1, x.shape[-1]), self.columns)
        output.view(-1, output.shape[-1]).addmm_(z_TM[:, : self.rows], self.write)
        return output
