"""Every merge against its formula on full matrices, in float64 and plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from common import dense, random_pair

from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES

TIGHT = {"rtol": 1e-9, "atol": 1e-10}
WIDE = {"width_in": 11, "width_out": 13, "dtype": torch.float64}


def zero(rank: int = 3) -> LoraPair:
    return LoraPair(
        torch.zeros(rank, 11, dtype=torch.float64), torch.zeros(13, rank, dtype=torch.float64), 2.0
    )


def never_trained(seed: int) -> LoraPair:
    pair = random_pair(3, seed=seed, **WIDE)
    return LoraPair(pair.A, torch.zeros_like(pair.B), pair.scaling)


EQUAL: dict[str, list[LoraPair]] = {
    "one": [random_pair(3, seed=1, **WIDE)],
    "three": [random_pair(3, seed=n, **WIDE) for n in range(3)],
    "one is zero": [random_pair(3, scaling=2.0, seed=1, **WIDE), zero(), zero()],
    "never trained": [random_pair(3, seed=1, **WIDE), never_trained(2)],
    "twins": [random_pair(3, seed=1, **WIDE), *[random_pair(3, seed=2, **WIDE)] * 2],
    "all zero": [zero(), zero()],
    "more directions than the layer has": [random_pair(5, seed=n, **WIDE) for n in range(4)],
}
UNEQUAL: dict[str, list[LoraPair]] = {
    "odd ranks": [random_pair(r, scaling=r / 2, seed=r, **WIDE) for r in (1, 3, 5)],
    "odd ranks, one zero": [
        random_pair(1, seed=1, **WIDE),
        zero(3),
        random_pair(5, seed=2, **WIDE),
    ],
}
ANY = {**EQUAL, **UNEQUAL}
every_library = pytest.mark.parametrize("pairs", ANY.values(), ids=ANY.keys())


def merged(name: str, pairs: Sequence[LoraPair], layer: str = "", **parameters: Any) -> LoraPair:
    merge = MERGES.get(name)
    return merge(Layer(layer, pairs), merge.parameters(**parameters))


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, singular, v = torch.linalg.svd(matrix)
    return sum(
        (singular[n] * torch.outer(u[:, n], v[n]) for n in range(min(rank, len(singular)))),
        torch.zeros_like(matrix),
    )


@every_library
@pytest.mark.parametrize("weight", [0.4, 1.0, -0.3])
def test_task_arithmetic_is_the_weighted_sum(pairs: list[LoraPair], weight: float) -> None:
    found = merged("task_arithmetic", pairs, **{"lambda": weight})
    torch.testing.assert_close(found.delta(), weight * sum(map(dense, pairs)), **TIGHT)
    assert found.rank == sum(pair.rank for pair in pairs)


def test_task_arithmetic_with_even_weights_is_the_mean() -> None:
    pairs = UNEQUAL["odd ranks"]
    found = merged("task_arithmetic", pairs, **{"lambda": 1 / 3})
    torch.testing.assert_close(found.delta(), merged("mean", pairs).delta(), **TIGHT)


@every_library
@pytest.mark.parametrize("rank", [1, 2, 7, 99, None])
@pytest.mark.parametrize("weight", [None, 1.0])
def test_svd_is_the_truncated_sum(
    pairs: list[LoraPair], rank: int | None, weight: float | None
) -> None:
    found = merged("svd", pairs, rank=rank, **{"lambda": weight})
    rank = rank or max(pair.rank for pair in pairs)
    total = sum(map(dense, pairs)) * (weight or 1 / len(pairs))
    torch.testing.assert_close(found.delta(), truncated(total, rank), **TIGHT)
    assert found.rank <= rank
    identity = torch.eye(found.rank, dtype=torch.float64)
    torch.testing.assert_close(found.A @ found.A.T, identity, **TIGHT)
