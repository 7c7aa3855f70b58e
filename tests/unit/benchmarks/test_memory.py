"""Peak memory against allocations that were counted by hand."""

from __future__ import annotations

import torch

from benchmarks.memory import LiveStorages, peak_bytes

FLOAT = 4


def test_results_and_what_is_alive_beside_them() -> None:
    def chain() -> torch.Tensor:
        first = torch.zeros(1000)
        second = first + 1  # two alive
        del first
        return second * 2  # two again

    assert peak_bytes(chain) == 2 * 1000 * FLOAT


def test_what_was_there_before_does_not_count() -> None:
    given = torch.ones(10_000)
    assert peak_bytes(lambda: given[:100]) == 0
    assert peak_bytes(lambda: given.view(100, 100).T) == 0
    assert peak_bytes(lambda: given.mul_(2)) == 0
    assert peak_bytes(lambda: given[:100] + 1) == 100 * FLOAT


def test_a_view_keeps_its_storage_alive_and_counts_once() -> None:
    with LiveStorages() as live:
        part = torch.zeros(500, dtype=torch.float64)[:1]
        rest = part[:1]
        assert live.now == 500 * 8
        del part
        assert live.now == 500 * 8
        del rest
        assert live.now == 0
    assert live.peak == 500 * 8


def test_operations_made_of_others_show_what_they_make() -> None:
    tokens, experts, rank, width = 7, 5, 4, 11
    z, B = torch.randn(tokens, experts, rank), torch.randn(experts, width, rank)

    def lift() -> torch.Tensor:
        # (T, E, D) for every expert, then the sum over experts
        return torch.einsum("ter,edr->ted", z, B).sum(1)

    lifted = tokens * experts * width * FLOAT
    assert lifted < peak_bytes(lift) <= 2 * lifted + tokens * width * FLOAT


def test_in_16_bits_it_is_half() -> None:
    x = torch.randn(64, 32)
    assert peak_bytes(lambda: x @ x.T) == 64 * 64 * FLOAT
    half = x.bfloat16()
    assert peak_bytes(lambda: half @ half.T) == 64 * 64 * 2
