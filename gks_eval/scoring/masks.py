"""Attention masks of token trees.

Shapes: B rows, N nodes a row, P tokens of the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Reach", "additive", "tree_mask"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a layer attends.

    Attributes:
        window: Only to the last so many positions, its own counted; None for no bound.
        chunk: Only within the block of so many positions; None for no bound.
    """

    window: int | None = None
    chunk: int | None = None

    def covers(self, length: int) -> bool:
        """Return whether a text of `length` tokens attends as if there were no bound."""
        bounds = [bound for bound in (self.window, self.chunk) if bound is not None]
        return all(length <= bound for bound in bounds)

    def within(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """Return where positions `query` reach positions `key`; None if everywhere."""
        if self.window is not None:
            return query - key < self.window
        if self.chunk is not None:
            return query // self.chunk == key // self.chunk
        return None


def tree_mask(
    ends_BN: torch.Tensor, positions_BN: torch.Tensor, trunk: int, reach: Reach
) -> torch.Tensor:
    """Let every node attend to the trunk, its ancestors and itself, as far as `reach` goes.

    With nodes written depth first, j is an ancestor of i or i itself exactly if
    ``j <= i < ends[j]``. Padding has ``ends[j] = j + 1``: it attends to itself (a row of the mask
    without any True would give NaN) and nothing attends to it.

    Args:
        ends_BN: One past each node's last descendant.
        positions_BN: Each node's position in its sequence.
        trunk: P, tokens before the rows, which they all continue.
        reach: How far back the layer attends.

    Returns:
        Bool, (B, 1, N, P + N); True where attention is allowed.
    """
    node_N = torch.arange(ends_BN.shape[1], device=ends_BN.device)
    mask = (node_N[None, :] <= node_N[:, None]) & (node_N[:, None] < ends_BN[:, None, :])
    near = reach.within(positions_BN[:, :, None], positions_BN[:, None, :])
    if near is not None:
        mask &= near
    if trunk:
        before_P = torch.arange(trunk, device=ends_BN.device)
        seen = reach.within(positions_BN[:, :, None], before_P)
        if seen is None:
            seen = mask.new_ones(*ends_BN.shape, trunk)
        mask = torch.cat([seen, mask], dim=-1)
    return mask[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a bool mask is True, and the lowest number of `dtype` elsewhere."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)
