"""Sizes of rows and batches, chosen from the model, the device and its memory."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import nn

from gks_eval.scoring.tree import RowLimits

__all__ = ["choose_limits", "requests_worth"]

CPU_BATCH_TOKENS = 1536
"""Enough for the matrix products; larger activations do not fit into the cache."""


def requests_worth(requests: Seq[tuple[Seq[int], Seq[int]]], count: int, max_length: int) -> int:
    """Return the tokens of a plain batch of `count` requests, each as long as the longest.

    Args:
        requests: (context tokens, continuation tokens) pairs.
        count: Requests per batch.
        max_length: Maximum number of input tokens.
    """
    longest = max((len(c) + len(t) - 1 for c, t in requests), default=1)
    return max(1, count) * max(1, min(longest, max_length))


def choose_limits(
    base: nn.Module,
    config: Any,
    device: torch.device,
    *,
    unpadded: bool,
    batch_tokens: int | None,
    row_tokens: int | None,
) -> RowLimits:
    """Choose the sizes that were not given.

    A row of N tokens costs N^2 in attention, so a CPU gets short rows, several per batch. A GPU
    must be filled: long rows, and as many as the free memory allows.

    Args:
        base: The transformer.
        config: The text configuration.
        device: Where the model runs.
        unpadded: Whether rows are concatenated, not padded.
        batch_tokens: Tokens per forward, or None.
        row_tokens: Tokens per row, or None.
    """
    on_cpu = device.type == "cpu"
    if batch_tokens is None:
        batch_tokens = CPU_BATCH_TOKENS if on_cpu else _fitting_tokens(base, config, device)
    whole_tokens = 0
    if row_tokens is None:
        cheap = _cheap_row(base, config)
        row_tokens = _within(128, cheap, 512) if on_cpu else _within(512, 4 * cheap, 2048)
        if unpadded:
            # Without padding, rows are only as long as sharing needs.
            whole_tokens, row_tokens = 2 * row_tokens, row_tokens // 4
    return RowLimits(
        row_tokens=max(1, min(row_tokens, batch_tokens)),
        batch_tokens=max(1, batch_tokens),
        mask_cells=(1 << 25) if on_cpu else (1 << 28),
        padded=not unpadded,
        whole_tokens=whole_tokens,
    )


def _within(least: int, wanted: int, most: int) -> int:
    return max(least, min(wanted, most))


def _cheap_row(base: nn.Module, config: Any) -> int:
    # Per token, a layer's linear products take 2 operations per weight, and attention over N
    # positions 4 N times the width. For the row returned, attention is a twelfth of the products.
    weights = sum(each.numel() for each in base.parameters() if each.ndim == 2)
    weights -= config.vocab_size * config.hidden_size
    return int(weights // (24 * config.hidden_size * config.num_hidden_layers))


def _fitting_tokens(base: nn.Module, config: Any, device: torch.device) -> int:
    # A layer holds about 12 hidden and 3 feed-forward activations at a time.
    hidden = getattr(config, "hidden_size", 4096)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    inner = inner if isinstance(inner, int) else max(inner)
    per_token = max(each.itemsize for each in base.parameters()) * (12 * hidden + 3 * inner)
    fitting = int(0.4 * _free_bytes(device)) // per_token
    return _within(2048, fitting, 16384)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 2 << 30
    # What torch's allocator holds for later is free for the next forward. Without it, a second
    # run would find less memory than the first, and plan other rows.
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
