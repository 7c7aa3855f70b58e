"""Attention masks of token trees.

Shapes: B rows, N nodes per row, P tokens of the shared prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["AttentionWindow", "additive", "tree_mask"]


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """How far back a layer attends.

    Attributes:
        size: Number of last positions it attends to, its own included; None for all.
        chunk: Size of the blocks within which it attends; None for no blocks.
    """

    size: int | None = None
    chunk: int | None = None

    def covers(self, length: int) -> bool:
        """Return whether a text of `length` tokens lies within the window."""
        bounds = [bound for bound in (self.size, self.chunk) if bound is not None]
        return all(length <= bound for bound in bounds)

    def within(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """Return which positions `query` attend to positions `key`; None if all do."""
        if self.size is not None:
            return query - key < self.size
        if self.chunk is not None:
            return query // self.chunk == key // self.chunk
        return None


def tree_mask(
    ends_BN: torch.Tensor, positions_BN: torch.Tensor, prefix: int, window: AttentionWindow
) -> torch.Tensor:
    """Let every node attend to the prefix, its ancestors and itself, within `window`.

    With nodes written depth first, j is an ancestor of i or i itself exactly if
    ``j <= i < ends[j]``. Padding has ``ends[j] = j + 1``: it attends to itself, because a row
    of the mask without any True would give NaN, and nothing attends to it.

    Args:
        ends_BN: One past each node's last descendant.
        positions_BN: Each node's position in its sequence.
        prefix: P, the number of tokens that all rows continue.
        window: How far back the layer attends.

    Returns:
        Bool, (B, 1, N, P + N); True where attention is allowed.
    """
    node_N = torch.arange(ends_BN.shape[1], device=ends_BN.device)
    mask = (node_N[None, :] <= node_N[:, None]) & (node_N[:, None] < ends_BN[:, None, :])
    near = window.within(positions_BN[:, :, None], positions_BN[:, None, :])
    if near is not None:
        mask &= near
    if prefix:
        before_P = torch.arange(prefix, device=ends_BN.device)
        seen = window.within(positions_BN[:, :, None], before_P)
        if seen is None:
            seen = mask.new_ones(*ends_BN.shape, prefix)
        mask = torch.cat([seen, mask], dim=-1)
    return mask[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a bool mask is True, and the lowest number of `dtype` elsewhere."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)
