"""Trains PHATGOOSE's gates: one vector per layer, with the base and the expert frozen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gks_eval.errors import DataError
from gks_eval.method.lora import LoraPair
from gks_eval.model.quantized import compute_dtype
from gks_eval.training.examples import IGNORED, Example

__all__ = ["Gate", "gated", "train_gates"]


class Gate:
    """A forward hook of a linear layer, ``y = layer(x) + sigmoid(v . x) s B A x``.

    Attributes:
        v: (K,) float32, initially zero, so that every token gets half of the expert's update; one
            tensor for all layers that share it.
    """

    def __init__(
        self,
        pair: LoraPair,
        dtype: torch.dtype,
        device: torch.device,
        v: torch.Tensor | None = None,
    ) -> None:
        self.A = pair.A.to(device, dtype)
        self.B = pair.B.to(device, dtype)
        self.scaling = pair.scaling
        zero = torch.zeros(pair.shape[1], device=device, requires_grad=True)
        self.v = zero if v is None else v

    def __call__(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Return the layer's output plus the gated update."""
        del layer
        x: torch.Tensor
        (x,) = (*args, *kwargs.values())
        update = self.scaling * (x.to(self.A.dtype) @ self.A.T) @ self.B.T
        share = torch.sigmoid(x.float() @ self.v.to(x.device)).unsqueeze(-1)
        return output + (share * update).to(output.dtype)


@contextmanager
def gated(
    model: nn.Module, pairs: Mapping[str, LoraPair], tied: Mapping[str, str] | None = None
) -> Iterator[dict[str, Gate]]:
    """Run the model with one gated expert; yield the gates by layer.

    Args:
        model: The base, with no trainable parameter.
        pairs: The expert's updates by layer.
        tied: The name of the group of each layer that shares its gate with others.
    """
    layers = {name: model.get_submodule(name) for name in pairs}
    gates: dict[str, Gate] = {}
    shared: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        device = layer.get_parameter("weight").device
        group = (tied or {}).get(name, name)
        gate = Gate(pairs[name], compute_dtype(layer, model), device, shared.get(group))
        shared[group], gates[name] = gate.v, gate
    hooks = [
        layer.register_forward_hook(gates[name], with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def train_gates(
    model: nn.Module,
    pairs: Mapping[str, LoraPair],
    examples: Sequence[Example],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tied: Mapping[str, str] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train the gates of one expert on its data, by AdamW without weight decay.

    Args:
        model: The base, frozen and in evaluation mode.
        pairs: The expert's updates by layer.
        examples: Its rows.
        steps: Optimiser steps.
        learning_rate: Constant learning rate.
        batch_size: Rows per step.
        seed: Seed of the order of the rows.
        tied: As for `gated`.
        on_step: Called after every step.

    Returns:
        The gates by layer, (K,) float32 on the CPU, and the loss of every step.

    Raises:
        DataError: A gate is not finite.
    """
    device = next(model.parameters()).device
    batches = _batches(examples, batch_size, seed)
    losses: list[float] = []
    with gated(model, pairs, tied) as gates, torch.enable_grad():
        optimizer = torch.optim.AdamW(
            list({id(gate.v): gate.v for gate in gates.values()}.values()),
            lr=learning_rate,
            weight_decay=0.0,
        )
        for _ in range(steps):
            loss = _loss(model, next(batches), device)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            on_step()
        # Copies: safetensors refuses tensors that share memory, as those of tied layers would.
        found = {name: gate.v.detach().cpu().clone() for name, gate in gates.items()}
    if not all(vector.isfinite().all() for vector in found.values()):
        raise DataError("training the gates diverged; use a smaller --learning-rate.")
    return found, losses


def _batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Yield batches without end; every row is used once before any is repeated."""
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    queue: list[Example] = []
    while True:
        while len(queue) < size:
            queue += order.sample(examples, len(examples))
        yield queue[:size]
        queue = queue[size:]


def _loss(model: nn.Module, batch: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Return the mean negative log-likelihood of the scored tokens, in float32."""
    length = max(len(example.input_ids) for example in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(batch):
        count = len(example.input_ids)
        ids[row, :count] = torch.tensor(example.input_ids)
        labels[row, :count] = torch.tensor(example.labels)
        mask[row, :count] = 1
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).logits[:, :-1]
    wanted = labels[:, 1:].to(device)
    kept = wanted != IGNORED
    return nn.functional.cross_entropy(logits[kept].float(), wanted[kept])
