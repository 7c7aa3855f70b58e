"""Unpadded rows: one long sequence for the linear layers, row by row for attention.

A batch of rows padded to the longest computes padding in every layer, and attention between all
pairs of a row's tokens. Here the rows are concatenated into a single sequence without padding. A
function registered with transformers' attention interface splits queries, keys and values into rows
again and computes attention per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from gks_eval.scoring.masks import AttentionWindow, additive, tree_mask
from gks_eval.scoring.tree import TreeRow

__all__ = ["UnpaddedBatch", "unpadded_batch"]

NAME = "gks_unpadded_rows"


@dataclass(frozen=True, slots=True)
class UnpaddedBatch:
    """Rows in one sequence.

    Attributes:
        bounds: Start of each row, and end of the last.
        masks: Per kind of layer and row, the additive mask (1, 1, N, N); None for plain causal
            attention.
    """

    bounds: list[int]
    masks: list[list[torch.Tensor | None]]

    def handles(self) -> list[torch.Tensor]:
        """Return the model's mask argument per kind of layer; it only holds the kind's number."""
        return [torch.full((1, 1, 1, 1), kind) for kind in range(len(self.masks))]

    @contextmanager
    def attended(self, config: Any) -> Iterator[None]:
        """Make the model of `config` compute attention per row."""
        _register()
        before = config._attn_implementation
        token = _CURRENT.set(self)
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before
            _CURRENT.reset(token)


_CURRENT: ContextVar[UnpaddedBatch] = ContextVar(NAME)


def unpadded_batch(
    rows: Sequence[TreeRow],
    windows: Sequence[AttentionWindow],
    dtype: torch.dtype,
    device: torch.device,
) -> UnpaddedBatch:
    """Prepare rows that start at the root of their trees.

    Args:
        rows: The rows.
        windows: How far back each kind of layer attends.
        dtype: Of queries; every layer would convert a bool mask to it again.
        device: Where the model runs.
    """
    bounds = [0]
    masks: list[list[torch.Tensor | None]] = [[] for _ in windows]
    for row in rows:
        bounds.append(bounds[-1] + len(row.tokens))
        ends = torch.tensor([row.ends], device=device)
        depths = torch.tensor([row.depths], device=device)
        for of_kind, window in zip(masks, windows, strict=True):
            plain = row.is_chain and window.covers(len(row.tokens))
            of_kind.append(None if plain else additive(tree_mask(ends, depths, 0, window), dtype))
    return UnpaddedBatch(bounds, masks)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    current = _CURRENT.get()
    parts = [
        sdpa_attention_forward(
            module,
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            mask,
            **options,
        )[0]
        for start, stop, mask in zip(
            current.bounds, current.bounds[1:], current.masks[int(attention_mask)], strict=False
        )
    ]
    return torch.cat(parts, dim=1), None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)  # registering twice is harmless
