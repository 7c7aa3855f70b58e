"""Products with a block-diagonal matrix, one block per expert, above dense rows.

With few experts the whole matrix is multiplied in one operator. Its size grows with the square of
the number of experts, so with many only the blocks are held, and multiplied in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import pad
from typing_extensions import Self

__all__ = ["FEW", "Blocks"]

FEW: Final = 64
"""Up to this many experts, the whole matrix is as fast as its blocks or faster on a CPU."""


@dataclass(frozen=True)
class Blocks:
    """The matrix ``[[diag(blocks), 0], [below]]``, (M, N).

    Attributes:
        whole: (M, N) float32; None with many experts.
        blocks: (E, R, Q) float32, padded with zeros; None with few experts.
        read: (E R,) int64, the rows of each block; None if all have R.
        kept: The columns of the blocks, without those of the padding; None if all have Q.
        below: (M - M_e, N) float32; None if it is part of `whole`, or has no rows.
    """

    whole: torch.Tensor | None
    blocks: torch.Tensor | None = None
    read: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    below: torch.Tensor | None = None

    @classmethod
    def of(cls, blocks: Sequence[torch.Tensor], below: torch.Tensor) -> Self:
        """Hold the blocks, (R_e, Q_e), and the rows below them, whose width N is at least ΣQ_e."""
        if len(blocks) <= FEW:
            diagonal: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
            above = pad(diagonal, (0, below.shape[1] - diagonal.shape[1]))
            return cls(torch.cat([above, below]).float())
        heights, widths = torch.tensor([block.shape for block in blocks]).T
        height, width = int(heights.max()), int(widths.max())
        room = [(0, width - block.shape[1], 0, height - block.shape[0]) for block in blocks]
        padded = [pad(block, sides) for block, sides in zip(blocks, room, strict=True)]
        return cls(
            None,
            torch.stack(padded).float(),
            # Rows after a block's own meet zeros.
            None if heights.min() == height else _rows(heights).clamp_max(int(heights.sum()) - 1),
            None if widths.min() == width else _inside(widths).nonzero()[:, 0],
            below.float() if len(below) else None,
        )

    def __call__(self, x_TM: torch.Tensor) -> torch.Tensor:
        """Return the products, (T, N)."""
        if self.blocks is None:
            assert self.whole is not None
            return x_TM @ self.whole
        experts, height, _ = self.blocks.shape
        own = x_TM.shape[1] - (0 if self.below is None else len(self.below))
        x_TL = x_TM[:, :own] if self.read is None else x_TM.index_select(1, self.read)
        x_ETR = x_TL.view(x_TM.shape[0], experts, height).transpose(0, 1)
        y_TN = torch.bmm(x_ETR, self.blocks).transpose(0, 1).flatten(1)
        if self.kept is not None:
            y_TN = y_TN.index_select(1, self.kept)
        if self.below is None:
            return y_TN
        y_TN = pad(y_TN, (0, self.below.shape[1] - y_TN.shape[1]))
        return torch.addmm(y_TN, x_TM[:, own:], self.below)


def _rows(sizes: torch.Tensor) -> torch.Tensor:
    first = sizes.cumsum(0) - sizes
    return (first[:, None] + torch.arange(int(sizes.max()))).flatten()


def _inside(sizes: torch.Tensor) -> torch.Tensor:
    return (torch.arange(int(sizes.max())) < sizes[:, None]).flatten()
