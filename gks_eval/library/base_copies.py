"""Weights of the base that PEFT saved next to an adapter's factors.

PEFT saves the embeddings, the output embeddings or both when they are targeted (`lm_head` in
target_modules), when the vocabulary was resized, or when asked to; loading the adapter writes them
into the base. If they equal the base's weights, they change nothing. If they differ, the adapter
is for another base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gks_eval.errors import CompatibilityError, LibraryError
from gks_eval.library.peft_adapter import WEIGHTS_FILE, Adapter

__all__ = ["check_copies"]

_ROWS: Final = 8192  # rows per comparison; the embeddings can take gigabytes
_ATOL: Final = 1e-7  # float16's smallest number is 6e-8


def check_copies(adapter: Adapter, model: nn.Module, base: str) -> None:
    """Check that the weights of the base in an adapter's file are those of this base.

    Args:
        adapter: The adapter.
        model: The base without a library; on the meta device only shapes are compared.
        base: The base's name in messages.

    Raises:
        CompatibilityError: The base lacks such a weight, or its weight is different.
        LibraryError: The file has changed since the adapter was loaded and cannot be read.
    """
    if not adapter.copies:
        return
    path = adapter.folder / WEIGHTS_FILE
    try:
        _compare(path, adapter, model, base)
    except (OSError, SafetensorError) as error:
        raise LibraryError(
            f"{path}: the file changed after adapter {adapter.name!r} was loaded ({error}); copy "
            "it again, and load the library again."
        ) from None


def _compare(path: Path, adapter: Adapter, model: nn.Module, base: str) -> None:
    with safe_open(path, framework="pt") as file:
        for name, key in adapter.copies.items():
            start = f"{path}: adapter {adapter.name!r} holds {key}, "
            shape = tuple(file.get_slice(key).get_shape())
            held = _held(model, name)
            if held is None:
                raise CompatibilityError(
                    f"{start}which is neither a LoRA factor nor a weight of {base}; use an adapter "
                    "that was trained on this base."
                )
            if tuple(held.shape) != shape:
                raise CompatibilityError(f"{start}{_other_shape(model, name, shape, held, base)}")
            if not held.is_meta and not _equal(file.get_slice(key), held):
                raise CompatibilityError(
                    f"{start}which differs from the weight of {base}: it was trained too, or the "
                    "adapter is for another base; use the base that has this weight, or an adapter "
                    "that does not change it."
                )


def _held(model: nn.Module, name: str) -> torch.Tensor | None:
    from accelerate.utils import align_module_device

    parent, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
    except AttributeError:
        return None
    with align_module_device(module):  # loads an offloaded weight from meta
        held: Any = getattr(module, leaf, None)
        return held.detach() if isinstance(held, torch.Tensor) else None


def _other_shape(
    model: nn.Module, name: str, shape: tuple[int, ...], held: torch.Tensor, base: str
) -> str:
    own: Any = model
    ends = [own.get_input_embeddings(), own.get_output_embeddings()]
    if held.shape[1:] == shape[1:] and model.get_submodule(name.rpartition(".")[0]) in ends:
        return (
            f"embeddings of {shape[0]} tokens where {base} has {held.shape[0]}: it was trained on "
            "a resized vocabulary; resize the base's embeddings to that, save it with the "
            "tokenizer, and name it with pretrained=..."
        )
    return (
        f"a weight of shape {shape} where {base} has one of shape {tuple(held.shape)}; use the base"
        " that the adapter was trained on."
    )


def _equal(copy: Any, held: torch.Tensor) -> bool:
    for start in range(0, held.shape[0], _ROWS):
        one, other = copy[start : start + _ROWS].to(held.device), held[start : start + _ROWS]
        if one.dtype == other.dtype:
            same = torch.equal(one, other)
        elif one.is_floating_point() and other.is_floating_point():
            # In different dtypes: compared to the precision of the coarser one.
            coarse = max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps)
            same = torch.allclose(one.float(), other.float(), rtol=coarse, atol=_ATOL)
        else:
            same = False
        if not same:
            return False
    return True
