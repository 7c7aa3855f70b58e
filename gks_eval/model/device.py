"""The device that a base model is loaded on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gks_eval.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["choose_device", "recipe_device"]


def choose_device(asked: str | None) -> str:
    """Return the device of a ``device=`` argument; without one the GPU, or else the CPU.

    Raises:
        UsageError: This machine does not have the device.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(f"device={asked} is no device; known: cpu, cuda, cuda:0, mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        return "cpu"  # lm-eval's command line says cuda:0 where the user says nothing
    if device.type == "meta" or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UsageError(f"device={asked} is not on this machine; leave it out to have one chosen.")
    return asked


def recipe_device(asked: str) -> torch.device:
    """Return the device of a recipe's ``load.device``: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ResourceError: The recipe insists on a GPU, and there is none.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "load.device: the recipe needs a GPU and none is visible; run it on a machine with one,"
            " or set `device: auto`."
        )
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Under torchrun each process has its own GPU.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
