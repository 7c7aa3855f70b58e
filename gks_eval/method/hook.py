"""The forward hook that adds the routed update to a linear layer's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module

from gks_eval.method.choice import Choice
from gks_eval.method.contexts import current_contexts
from gks_eval.method.routed import add_update
from gks_eval.method.siblings import Siblings
from gks_eval.method.weights import RoutedWeights, to_device

__all__ = ["Observer", "RoutedUpdate", "share", "suspended", "updates_of"]

Observer = Callable[[str, torch.Tensor], None]
"""Called with a layer's name and its coefficients, (T, E), at every forward.

With one choice per context, padding is left out.
"""


class RoutedUpdate:
    """A forward hook of a linear layer, ``y = layer(x) + routed_update(x)``.

    It is a hook, not a module around the layer, so that the model keeps the base's names,
    parameters and saved weights.

    Attributes:
        layer: The nn.Linear, Linear4bit, Linear8bitLt or Conv1D that carries the hook.
        name: The layer's name in the model.
        weights: What is added; None adds nothing.
        observer: Called with the name and the coefficients, (T, E), of every forward with weights.
    """

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer = layer
        self.name = name
        self.weights: RoutedWeights | None = None
        self.observer: Observer | None = None
        self._siblings: Siblings | None = None
        self._place = 0
        self._handle = layer.register_forward_hook(self, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off the layer."""
        self._handle.remove()

    def __call__(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Return output plus the routed update; x has K as its last dimension, the output D."""
        weights = self.weights
        if weights is None:
            return output
        x: torch.Tensor
        (x,) = (*args, *kwargs.values()) if kwargs else args
        if self._siblings is not None:
            part = self._siblings.part(self._place, weights, x)
            if part is not None:
                return self._with_part(layer, weights, output, *part)
        if weights.read.device != x.device:
            # Layers of an offloaded or split model compute where their input is.
            weights = self.weights = to_device(weights, x.device)
        if torch.is_autocast_enabled(x.device.type):
            # Autocast would silently change the dtype of the products.
            with torch.autocast(x.device.type, enabled=False):
                return self._added(layer, weights, x, output)
        return self._added(layer, weights, x, output)

    def _added(
        self, layer: nn.Module, weights: RoutedWeights, x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        x_TK = x.reshape(-1, x.shape[-1])
        if x.dtype != weights.read.dtype:
            x_TK = x_TK.to(weights.read.dtype)
        into = _fresh(layer, weights, output)
        contexts = current_contexts(len(x_TK), self.name) if weights.by_context else None
        update_TD, found = add_update(x_TK, weights, into, contexts, self.name)
        if self.observer is not None:
            c_TE = found.dense(weights.experts) if isinstance(found, Choice) else found
            c_TE = c_TE.expand(x_TK.shape[0], -1)
            self.observer(self.name, contexts.without_padding(c_TE) if contexts else c_TE)
        if into is None:
            output = output + update_TD.view_as(output).to(output.dtype)
        return output

    def _with_part(
        self,
        layer: nn.Module,
        weights: RoutedWeights,
        output: torch.Tensor,
        mixed_TM: torch.Tensor,
        c_TLE: torch.Tensor,
    ) -> torch.Tensor:
        if self.observer is not None:
            self.observer(self.name, c_TLE[:, self._place])
        into = _fresh(layer, weights, output)
        if into is not None:
            into.addmm_(mixed_TM, weights.write)
            return output
        return output + (mixed_TM @ weights.write).view_as(output).to(output.dtype)

    def share_with(self, siblings: Siblings | None, place: int = 0) -> None:
        """Compute with layers of the same input from now on; None for alone."""
        self._siblings, self._place = siblings, place
        if siblings is not None:
            self.weights = siblings.weights[place]


def _fresh(layer: nn.Module, weights: RoutedWeights, output: torch.Tensor) -> torch.Tensor | None:
    """Return the output as (T, D) if nothing else holds it, else None.

    The update is added into it rather than allocated: no other hook has seen it.
    """
    if (
        len(layer._forward_hooks) == 1
        and not module._global_forward_hooks
        and not torch.is_grad_enabled()
        and output.dtype == weights.write.dtype
    ):
        return output.view(-1, output.shape[-1])
    return None


def updates_of(model: nn.Module) -> list[RoutedUpdate]:
    """Return the hooks on a model's layers."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return [hook for hook in hooks if isinstance(hook, RoutedUpdate)]


def share(updates: Sequence[RoutedUpdate]) -> None:
    """Let layers that usually read the same tensor compute together, if their weights allow it."""
    for update in updates:
        update.share_with(None)
    updates = [update for update in updates if update.weights is not None]
    siblings = Siblings.of([update.weights for update in updates])
    for place, update in enumerate(updates):
        update.share_with(siblings, place)


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Run the base alone inside the block."""
    held = [(update, update.weights) for update in updates_of(model)]
    for update, _ in held:
        update.weights = None
    try:
        yield
    finally:
        for update, weights in held:
            update.weights = weights
