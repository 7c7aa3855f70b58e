"""Rows abreast: one long sequence for the linear layers, row by row for attention.

A batch of rows padded to the longest computes padding in every layer, and attention between all
pairs of a row's tokens. Here the rows lie one behind the other in a single sequence, so that there
is no padding; a function registered with transformers' attention interface cuts queries, keys and
values apart again and has each row attend on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from gks_eval.scoring.masks import Reach, additive, tree_mask
from gks_eval.scoring.tree import TreeRow

__all__ = ["Abreast", "lay_abreast"]

NAME = "gks_rows_abreast"


@dataclass(frozen=True, slots=True)
class Abreast:
    """Rows in one sequence.

    Attributes:
        bounds: Where each row starts, and where the last ends.
        masks: For each kind of layer each row's mask, additive (1, 1, N, N); None for plain
            causal attention.
    """

    bounds: list[int]
    masks: list[list[torch.Tensor | None]]

    def handles(self) -> list[torch.Tensor]:
        """Return what the model takes for a mask, one a kind of layer: the kind's number."""
        return [torch.full((1, 1, 1, 1), kind) for kind in range(len(self.masks))]

    @contextmanager
    def attended(self, config: Any) -> Iterator[None]:
        """Have the model of `config` attend row by row."""
        _register()
        before = config._attn_implementation
        token = _CURRENT.set(self)
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before
            _CURRENT.reset(token)


_CURRENT: ContextVar[Abreast] = ContextVar(NAME)


def lay_abreast(
    rows: Sequence[TreeRow], reaches: Sequence[Reach], dtype: torch.dtype, device: torch.device
) -> Abreast:
    """Prepare rows that start at the root of their trees.

    Args:
        rows: The rows.
        reaches: How far back each kind of layer attends.
        dtype: Of queries; a mask of bools would be converted to this type in every layer.
        device: Where the model runs.
    """
    bounds = [0]
    masks: list[list[torch.Tensor | None]] = [[] for _ in reaches]
    for row in rows:
        bounds.append(bounds[-1] + len(row.tokens))
        ends = torch.tensor([row.ends], device=device)
        depths = torch.tensor([row.depths], device=device)
        for of_kind, reach in zip(masks, reaches, strict=True):
            plain = row.is_chain and reach.covers(len(row.tokens))
            of_kind.append(None if plain else additive(tree_mask(ends, depths, 0, reach), dtype))
    return Abreast(bounds, masks)


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

    AttentionInterface.register(NAME, _attend)  # again changes nothing
