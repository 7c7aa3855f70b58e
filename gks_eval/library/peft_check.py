"""Checks that PEFT reads back the update that was written, without the base's weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gks_eval.errors import LibraryError
from gks_eval.method.lora import LoraPair

__all__ = ["check_with_peft"]


def check_with_peft(folder: Path, pairs: Mapping[str, LoraPair]) -> None:
    """Have PEFT load an adapter, and compare the factors and scalings of all its layers.

    PEFT loads it onto linear layers of the same names and shapes, whose weights are expanded zeros.

    Args:
        folder: The adapter's folder.
        pairs: What was written, by layer.

    Raises:
        LibraryError: PEFT cannot load it, or reads a different update.
    """
    from peft import PeftModel

    skeleton = _Skeleton({name: pair.shape for name, pair in pairs.items()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT expects a model of transformers
            model = PeftModel.from_pretrained(skeleton, folder)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise LibraryError(f"{folder}: PEFT cannot load the adapter ({error}).") from error
    found = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    wrong = sorted(found.keys() ^ pairs.keys())
    wrong += [name for name, pair in pairs.items() if not wrong and not _equal(found[name], pair)]
    if wrong:
        raise LibraryError(
            f"{folder}: PEFT reads another update of {wrong[0]} than was written; please report it."
        )


def _equal(layer: Any, pair: LoraPair) -> bool:
    (name,) = layer.lora_A
    return (
        torch.equal(layer.lora_A[name].weight, pair.A)
        and torch.equal(layer.lora_B[name].weight, pair.B)
        and math.isclose(layer.scaling[name], pair.scaling, rel_tol=1e-9)
    )


class _Skeleton(nn.Module):
    """Linear layers under given names, with the method that PEFT requires of a causal LM."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (width_out, width_in) in shapes.items():
            *parents, leaf = name.split(".")
            place: nn.Module = self
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = getattr(place, parent)
            with torch.device("meta"):
                linear = nn.Linear(width_in, width_out, bias=False)
            linear.weight = nn.Parameter(torch.zeros(1).expand(width_out, width_in), False)
            place.add_module(leaf, linear)

    def prepare_inputs_for_generation(self) -> None:
        """Do nothing: PEFT only stores a reference to this method."""
