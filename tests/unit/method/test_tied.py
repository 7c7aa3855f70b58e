"""The joined updates of tied layers, against full matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common import dense, random_pair

from gks_eval.method.declaration import TieOp
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.tied import joined

ABSENT = no_update((24, 16))


def layers(shared: bool) -> list[LoraPair]:
    """Three layers of unequal scaling, with one A or with their own."""
    pairs = [random_pair(seed=n, scaling=1.5 + n) for n in range(3)]
    return [replace(pair, A=pairs[0].A) for pair in pairs] if shared else pairs


@pytest.mark.parametrize("op", ["concat", "sum"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("absent", [[], [0], [1, 2], [0, 1, 2]], ids=str)
def test_joined_updates(op: TieOp, shared: bool, absent: list[int]) -> None:
    pairs = [ABSENT if n in absent else pair for n, pair in enumerate(layers(shared))]
    present = [dense(pair) for pair in pairs if not pair.missing]
    found = joined(op, pairs)
    if not present:
        assert found is ABSENT
        return
    expected = torch.cat(present) if op == "concat" else torch.stack(present).sum(0)
    torch.testing.assert_close(dense(found), expected, rtol=1e-5, atol=1e-6)
    assert found.scaling == 1.0
    assert found.rank == (4 if shared else 4 * len(present))
