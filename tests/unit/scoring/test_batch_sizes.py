"""Sizes that are chosen from a GPU's memory."""

from __future__ import annotations

import pytest
import torch

from gks_eval.scoring import batch_sizes


def test_memory_that_torch_holds_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run finds as much memory as the first: its rows, and their plan, are the same."""
    gib = 1 << 30

    def gpu(free: int, reserved: int, allocated: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * gib, 80 * gib))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * gib)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated * gib)
        return batch_sizes._free_bytes(torch.device("cuda:0"))

    assert gpu(free=70, reserved=8, allocated=8) == gpu(free=40, reserved=38, allocated=8)
    assert batch_sizes._free_bytes(torch.device("cpu")) == 2 * gib
