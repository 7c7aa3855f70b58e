"""What a plan consists of: rows, groups of rows, and the limits of their sizes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Group", "PlannedRow", "RowLimits"]


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How large rows and batches may be.

    Attributes:
        row_tokens: Target length of a row.
        batch_tokens: Maximum number of tokens per forward, padding included; a longer row has its
            own forward.
        mask_cells: Maximum number of cells in a batch's attention masks.
        padded: Whether rows from the root are padded to the longest of a batch.
        whole_tokens: Clusters up to this size are kept in one row; 0 for twice `row_tokens`.
    """

    row_tokens: int
    batch_tokens: int
    mask_cells: int
    padded: bool = True
    whole_tokens: int = 0

    @property
    def whole(self) -> int:
        """Return the size up to which a cluster is kept in one row."""
        return self.whole_tokens or 2 * self.row_tokens

    @property
    def worth_sharing(self) -> int:
        """Return the prefix length below which repeating it in every row costs almost nothing."""
        return max(4, self.row_tokens // 16)


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """Sequences that share a row.

    Attributes:
        members: Their positions, ascending.
        tokens: The row's length.
        chain: Whether it is a single path of tokens, without branches.
    """

    members: tuple[int, ...]
    tokens: int
    chain: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that continue one shared prefix: trees, then chains, each sorted from the longest.

    Attributes:
        prefix: Its tokens, computed once; empty if rows start at the root.
        rows: The rows that continue it.
    """

    prefix: tuple[int, ...]
    rows: list[PlannedRow]
