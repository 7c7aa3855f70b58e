"""Seeds of random draws, one per layer."""

from __future__ import annotations

import hashlib

__all__ = ["layer_seed"]


def layer_seed(seed: int, name: str) -> int:
    """Return a seed for the layer called `name`; the seed itself if the layer has no name.

    Layers of one shape would otherwise all draw the same numbers.
    """
    if not name:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
