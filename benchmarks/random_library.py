"""Libraries of random adapters on disk, in PEFT's format; costs depend only on shapes.

Factors are Gaussian, with updates of about the size of a layer's output, so that a difference
between two implementations is visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from gks_eval.library.load import MANIFEST
from gks_eval.library.writer import write_adapter
from gks_eval.method.lora import LoraPair

__all__ = ["random_pairs", "write_random_library"]

GAIN = 0.2


def write_random_library(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    experts: int,
    general: int = 1,
    rank: int = 4,
    base_model: str = "random",
    seed: int = 0,
) -> str:
    """Write a library and return its path, for `load_library`.

    Args:
        folder: The folder to create.
        shapes: (D, K) of each linear layer that the adapters update, by name.
        experts: Number of task adapters.
        general: Number of general adapters.
        rank: Rank of all adapters; the scaling is 4.
        base_model: The base model in library.yaml.
        seed: Equal seeds give equal weights.
    """
    generator = torch.Generator().manual_seed(seed)
    names = {
        "experts": [f"expert-{n}" for n in range(experts)],
        "general": [f"general-{n}" for n in range(general)],
    }
    targets = sorted({module.rpartition(".")[2] for module in shapes})
    for kind, members in names.items():
        for name in members:
            write_adapter(
                folder / kind / name,
                random_pairs(shapes, rank, generator),
                base_model=base_model,
                # Without a task type, PEFT also loads it onto a single layer.
                config={"target_modules": targets, "task_type": None},
            )
    manifest = {"base_model": base_model} | {
        kind: {name: f"{kind}/{name}" for name in members} for kind, members in names.items()
    }
    text = yaml.safe_dump(manifest, sort_keys=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="")
    return str(folder)


def random_pairs(
    shapes: Mapping[str, tuple[int, int]], rank: int, generator: torch.Generator
) -> dict[str, LoraPair]:
    """Return one random adapter: its update of every linear layer of `shapes`, (D, K)."""
    pairs = {}
    for module, (width_out, width_in) in shapes.items():
        A_RK = torch.randn(rank, width_in, generator=generator) / width_in**0.5
        B_DR = GAIN * torch.randn(width_out, rank, generator=generator) / width_in**0.5
        pairs[module] = LoraPair(A_RK, B_DR, 4.0)
    return pairs
