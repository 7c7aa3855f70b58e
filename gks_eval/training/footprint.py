"""Measures the memory of a training step by running it on the meta device.

A forward and a backward pass run on tensors that have shapes and no values. Every storage that they
allocate is counted until it is freed, so the peak is that of the model's own code, for any layers,
with and without gradient checkpointing.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["step_bytes"]

TILE = (4096, 32768)
"""TRL computes the head's logits in tiles of at most this many positions and tokens."""
TILE_COPIES = {"cuda": 1, "cpu": 8}
"""Float32 copies of a tile that its gradient holds at once, by device; a GPU has a fused kernel."""


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps; on meta tensors, torch's attention keeps all scores."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:  # noqa: ARG004 - torch's signature
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(
    module: Any,  # noqa: ARG001 - transformers' signature
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,  # noqa: ARG001
    **_: Any,
) -> tuple[Any, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[no-untyped-call]


def step_bytes(
    model: PeftModel, rows: int, length: int, *, checkpointing: bool, device: str
) -> int:
    """Return the peak bytes of a micro-step, without the model's parameters.

    Args:
        model: A base with a trainable adapter, both on the meta device.
        rows: Rows of the micro-step.
        length: Tokens per row.
        checkpointing: Whether activations are recomputed in the backward pass.
        device: Type of the device that the step would run on.
    """
    from transformers import AttentionInterface

    decoder: Any = model.get_base_model()
    head = decoder.get_output_embeddings()
    with warnings.catch_warnings():
        # The newest transformers has activation_checkpointing; both names work.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        if checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
            decoder.enable_input_require_grads()
        else:
            decoder.gradient_checkpointing_disable()
    AttentionInterface.register("gks_eval_footprint", _attention)
    decoder.config._attn_implementation = "gks_eval_footprint"
    model.train()
    with torch.device("meta"):
        inputs = {
            "input_ids": torch.zeros(rows, length, dtype=torch.long),
            "position_ids": torch.zeros(rows, length, dtype=torch.long),
        }
    live = _LiveBytes()
    for parameter in model.parameters():
        live.count(parameter)
    held = live.now
    with live:
        hidden = decoder.base_model(**inputs, use_cache=False)[0]
        hidden.sum().backward()
    tile = min(rows * length, TILE[0]) * min(head.out_features, TILE[1])
    return int(live.peak - held + 4 * TILE_COPIES.get(device, 1) * tile)
