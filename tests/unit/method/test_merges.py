"""Every merge against its formula on full matrices, in float64 and plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from common import LargestTensor, dense, random_pair

from gks_eval.errors import CompatibilityError
from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES
from gks_eval.method.seeds import layer_seed

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
    "more experts than the layer is wide": [random_pair(2, seed=n, **WIDE) for n in range(12)],
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
every_equal_library = pytest.mark.parametrize("pairs", EQUAL.values(), ids=EQUAL.keys())


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


def polar(columns: torch.Tensor) -> torch.Tensor:
    """``U (U^T U)^(-1/2)``, by eigenvalues, where the inverse leaves zero eigenvalues alone."""
    values, vectors = torch.linalg.eigh(columns.T @ columns)
    root = torch.zeros_like(columns.T @ columns)
    for n, value in enumerate(values.tolist()):
        if value > 1e-12:
            root += torch.outer(vectors[:, n], vectors[:, n]) / value**0.5
    return columns @ root


@every_library
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_tsv_orthogonalises_singular_vectors(pairs: list[LoraPair], weight: float) -> None:
    lefts, values, rights = [], [], []
    for pair in pairs:
        u, singular, v = torch.linalg.svd(dense(pair))
        for n in range(min(pair.rank, max(1, 11 // len(pairs)))):
            if singular[n] > 1e-12:
                lefts.append(u[:, n])
                values.append(singular[n])
                rights.append(v[n])
    expected = torch.zeros(13, 11, dtype=torch.float64)
    if values:
        left, right = polar(torch.stack(lefts, 1)), polar(torch.stack(rights, 1))
        expected = weight * left @ torch.diag(torch.stack(values)) @ right.T
    found = merged("tsv", pairs, **{"lambda": weight})
    torch.testing.assert_close(found.delta(), expected, rtol=1e-6, atol=1e-7)


def test_tsv_of_one_expert_and_of_orthogonal_ones_is_their_sum() -> None:
    (pair,) = EQUAL["one"]
    torch.testing.assert_close(merged("tsv", [pair]).delta(), dense(pair), **TIGHT)
    one, other = torch.zeros(13, 11, dtype=torch.float64), torch.zeros(13, 11, dtype=torch.float64)
    one[:2, :3], other[4:6, 5:9] = 1.0, torch.arange(8.0).reshape(2, 4) ** 2
    apart = [LoraPair(torch.eye(11, dtype=torch.float64), update) for update in (one, other)]
    torch.testing.assert_close(merged("tsv", apart).delta(), one + other, **TIGHT)


def test_tsv_of_updates_of_zero_has_rank_1() -> None:
    found = merged("tsv", EQUAL["all zero"])
    assert found.A.shape == (1, 11)
    assert found.B.shape == (13, 1)
    assert not found.delta().any()


def test_tsv_counts_a_direction_once_that_all_experts_share() -> None:
    # Two equal experts of rank 1: U = [u u] has the polar factor u [1 1] / sqrt(2), likewise V.
    pair = random_pair(1, seed=1, **WIDE)
    torch.testing.assert_close(merged("tsv", [pair, pair]).delta(), dense(pair), **TIGHT)


def trimmed(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """The largest entries by magnitude, one at a time."""
    flat = tensor.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda n: -abs(flat[n]))
    kept = set(order[: int(density * len(flat))])
    values = [value if n in kept else 0.0 for n, value in enumerate(flat)]
    return torch.tensor(values, dtype=torch.float64).reshape(tensor.shape)


def elected(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the entries whose sign is that of their sum, one entry at a time."""
    found = torch.zeros_like(tensors[0])
    for index in torch.cartesian_prod(*(torch.arange(size) for size in found.shape)).tolist():
        entries = [float(tensor[tuple(index)]) for tensor in tensors]
        sign = 1 if sum(entries) >= 0 else -1
        agreeing = [entry for entry in entries if entry * sign > 0]
        found[tuple(index)] = sum(agreeing) / max(1, len(agreeing))
    return found


def dropped(tensors: Sequence[torch.Tensor], density: float) -> list[torch.Tensor]:
    """Entries dropped at random, by the state of torch's generator."""
    chances = [torch.bernoulli(torch.full_like(tensor, density)) for tensor in tensors]
    return [tensor * kept / density for tensor, kept in zip(tensors, chances, strict=True)]


PRUNING: dict[str, Callable[[list[torch.Tensor], float], torch.Tensor]] = {
    "ties": lambda tensors, density: elected([trimmed(one, density) for one in tensors]),
    "magnitude_prune": lambda tensors, density: sum(trimmed(one, density) for one in tensors),
    "dare_linear": lambda tensors, density: sum(dropped(tensors, density)),
    "dare_ties": lambda tensors, density: elected(dropped(tensors, density)),
}
every_pruning = pytest.mark.parametrize("name", PRUNING)


def default_weight(name: str, experts: int) -> float:
    return 1.0 if name.endswith("ties") else 1.0 / experts


@every_pruning
@every_equal_library
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_pruning_of_factors(name: str, pairs: list[LoraPair], density: float) -> None:
    found = merged(name, pairs, density=density)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        A = PRUNING[name]([pair.A for pair in pairs], density)
        B = PRUNING[name]([pair.B for pair in pairs], density)
    expected = default_weight(name, len(pairs)) * pairs[0].scaling * B @ A
    torch.testing.assert_close(found.delta(), expected, **TIGHT)
    assert found.rank == pairs[0].rank


@every_pruning
@every_library
@pytest.mark.parametrize("rank", [None, 2, 99])
def test_pruning_of_updates(name: str, pairs: list[LoraPair], rank: int | None) -> None:
    found = merged(name, pairs, on="delta", density=0.55, rank=rank, **{"lambda": 0.7})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        update = 0.7 * PRUNING[name]([dense(pair) for pair in pairs], 0.55)
    rank = rank or max(pair.rank for pair in pairs)
    torch.testing.assert_close(found.delta(), truncated(update, rank), **TIGHT)
    assert found.rank <= rank


def merged_entries(inner: str, tensors: list[torch.Tensor], density: float) -> torch.Tensor:
    """The inner merge with its default weight and the seed 0."""
    if inner == "mean":
        return sum(tensors) / len(tensors)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return default_weight(inner, len(tensors)) * PRUNING[inner](tensors, density)


every_inner = pytest.mark.parametrize("inner", ["mean", *PRUNING])


@every_library
@every_inner
@pytest.mark.parametrize("on", ["V", "SV"])
def test_knots_merges_in_the_basis_of_all_updates(
    pairs: list[LoraPair], inner: str, on: str
) -> None:
    found = merged("knots", pairs, inner=inner, density=0.4, on=on)
    u, singular, v = torch.linalg.svd(torch.cat(list(map(dense, pairs)), 1), full_matrices=False)
    kept = singular > 1e-12
    u, singular, v = u[:, kept], singular[kept], v[kept]
    parts = [v[:, 11 * e : 11 * (e + 1)] for e in range(len(pairs))]
    if not len(singular):
        expected = torch.zeros(13, 11, dtype=torch.float64)
    elif on == "V":
        expected = u @ torch.diag(singular) @ merged_entries(inner, parts, 0.4)
    else:
        expected = u @ merged_entries(inner, [torch.diag(singular) @ v for v in parts], 0.4)
    torch.testing.assert_close(found.delta(), expected, **TIGHT)
    assert found.rank <= min(13, sum(pair.rank for pair in pairs))


def column_basis(matrix: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of the Gram matrix, largest first."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors[:, values > 1e-12 * values.max().clamp_min(1e-30)].flip(1)


@every_library
@every_inner
def test_core_space_merges_the_cores(pairs: list[LoraPair], inner: str) -> None:
    found = merged("core_space", pairs, inner=inner, density=0.4)
    left = column_basis(torch.cat([pair.B for pair in pairs], 1))
    right = column_basis(torch.cat([pair.A for pair in pairs]).T)
    cores = [left.T @ dense(pair) @ right for pair in pairs]
    for core, pair in zip(cores, pairs, strict=True):
        torch.testing.assert_close(left @ core @ right.T, dense(pair), **TIGHT)
    expected = torch.zeros(13, 11, dtype=torch.float64)
    if left.shape[1] and right.shape[1]:
        expected = left @ merged_entries(inner, cores, 0.4) @ right.T
    torch.testing.assert_close(found.delta(), expected, **TIGHT)
    assert found.rank <= sum(pair.rank for pair in pairs)


@pytest.mark.parametrize("weight", [{}, {"lambda": 0.5}])
@pytest.mark.parametrize(
    "name", ["one", "three", "one is zero", "odd ranks", "more experts than the layer is wide"]
)
def test_tsv_in_core_space_is_tsv(name: str, weight: dict[str, float]) -> None:
    found = merged("core_space", ANY[name], inner="tsv", **weight)
    expected = merged("tsv", ANY[name], **weight)
    torch.testing.assert_close(found.delta(), expected.delta(), **TIGHT)


def test_the_largest_tensor_is_smaller_than_the_layer() -> None:
    pairs = [random_pair(2, width_in=300, width_out=400, seed=n) for n in range(3)]
    spanning = {"svd": {}, "tsv": {}, "knots": {}, "core_space": {}, "mean": {}}
    for name, parameters in spanning.items():
        with LargestTensor() as largest:
            merged(name, pairs, **parameters)
        # A basis of all factors, or for knots the parts of the experts in it.
        assert largest.numel <= 400 * 6 * (3 if name == "knots" else 1)


@every_pruning
def test_pruning_of_factors_refuses_unequal_ones(name: str) -> None:
    with pytest.raises(CompatibilityError, match=rf"merge:{name} needs one rank.*on=delta allows"):
        merged(name, UNEQUAL["odd ranks"])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_what_is_dropped_depends_on_seed_and_layer_and_nothing_else(name: str) -> None:
    pairs = EQUAL["three"]
    state = torch.random.get_rng_state()
    first = merged(name, pairs, "layer.0", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(merged(name, pairs, "layer.0", seed=1).B, first.B)
    assert not torch.equal(merged(name, pairs, "layer.1", seed=1).B, first.B)
    assert not torch.equal(merged(name, pairs, "layer.0", seed=2).B, first.B)


def test_the_seed_of_a_layer() -> None:
    # printf '3/model.layers.0' | sha256sum | cut -c 1-14
    assert layer_seed(3, "model.layers.0") == 0x3883FC725DE4AC
    assert layer_seed(3, "") == 3
