"""The stand-ins for adapters: what each keeps, and that it keeps nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from common import dense
from common import random_pair as adapter

from gks_eval.method.controls import (
    derangement,
    exchanged,
    generator_of,
    random_pair,
    rescaled,
    rotated,
)
from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.registry import ROUTERS

SHAPES = [(1, 5, 7), (4, 24, 16), (9, 6, 5)]  # the last rank exceeds both widths


@pytest.mark.parametrize(("rank", "d", "k"), SHAPES)
def test_a_random_pair_keeps_the_norms_of_the_factors(rank: int, d: int, k: int) -> None:
    pair = adapter(rank, k, d, scaling=0.5, seed=3, dtype=torch.float64)
    drawn = random_pair(pair, generator_of(0, "a"), of_update=False)
    assert drawn.A.shape == pair.A.shape
    assert drawn.scaling == pair.scaling
    torch.testing.assert_close(drawn.A.norm(), pair.A.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(drawn.B.norm(), pair.B.norm(), rtol=1e-12, atol=0)
    assert not torch.allclose(drawn.A, pair.A)


@pytest.mark.parametrize(("rank", "d", "k"), SHAPES)
def test_a_random_pair_keeps_the_norm_of_the_update(rank: int, d: int, k: int) -> None:
    pair = adapter(rank, k, d, scaling=0.5, seed=3, dtype=torch.float64)
    drawn = random_pair(pair, generator_of(0, "a"), of_update=True)
    torch.testing.assert_close(dense(drawn).norm(), dense(pair).norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("rank", "d", "k"), SHAPES)
def test_a_rotated_pair_keeps_the_singular_values(rank: int, d: int, k: int) -> None:
    pair = adapter(rank, k, d, scaling=2.0, seed=4, dtype=torch.float64)
    turned = rotated(pair, generator_of(1, "a"))
    torch.testing.assert_close(
        torch.linalg.svdvals(dense(turned)), torch.linalg.svdvals(dense(pair)), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(turned.A.norm(), pair.A.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(turned.B.norm(), pair.B.norm(), rtol=1e-12, atol=0)


def test_a_layer_that_an_adapter_leaves_alone_is_left_alone() -> None:
    lacking, generator = no_update((24, 16)), generator_of(0, "a")
    drawn = [random_pair(lacking, generator, of_update=of_update) for of_update in (False, True)]
    for made in (*drawn, rotated(lacking, generator), rescaled(lacking, 2.0)):
        assert made.missing
        assert not dense(made).any()


def test_rotated_directions_have_no_preference() -> None:
    pair = LoraPair(torch.eye(1, 3, dtype=torch.float64), torch.eye(3, 1, dtype=torch.float64))
    made = [rotated(pair, generator_of(seed, "a")) for seed in range(2000)]
    mean = torch.stack([one.A[0] for one in made]).mean(0)
    square = torch.stack([one.A[0] ** 2 for one in made]).mean(0)
    # Uniform on the sphere: mean 0 with standard error 0.013, mean square 1/3 with 0.007.
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.055)
    torch.testing.assert_close(
        square, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.03
    )


def test_a_rescaled_pair_has_the_norm_and_the_direction() -> None:
    pair = adapter(4, scaling=2.0, seed=5, dtype=torch.float64)
    made = rescaled(pair, 3.0)
    torch.testing.assert_close(dense(made), dense(pair) * 3.0 / dense(pair).norm())
    assert made.scaling == pair.scaling
    zero = LoraPair(torch.zeros(2, 3), torch.zeros(4, 2))
    assert not rescaled(zero, 3.0).delta().any()


def test_draws_follow_from_seed_and_names() -> None:
    pair = adapter(2, seed=6)
    first, again, other, layer = (
        random_pair(pair, generator_of(seed, name), of_update=False).A
        for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert not torch.equal(first, layer)
    assert first.dtype == pair.A.dtype


def test_layers_are_exchanged_within_their_shape() -> None:
    shapes = {f"q{n}": (4, 4) for n in range(5)} | {f"v{n}": (4, 8) for n in range(2)}
    shapes["head"] = (9, 4)
    found = exchanged(shapes, 0)
    assert sorted(found) == sorted(found.values()) == sorted(shapes)
    assert all(shapes[name] == shapes[source] for name, source in found.items())
    assert [name for name, source in found.items() if name == source] == ["head"]
    assert exchanged(dict(reversed(shapes.items())), 0) == found
    assert len({tuple(exchanged(shapes, seed).items()) for seed in range(20)}) > 5


def test_derangements_are_uniform() -> None:
    generator = generator_of(0, "test")
    drawn = Counter(tuple(derangement(4, generator)) for _ in range(9000))
    assert len(drawn) == 9  # !4
    # 1,000 expected each, standard deviation 30.
    assert all(abs(count - 1000) < 130 for count in drawn.values())
    assert list(derangement(1, generator)) == [0]
    assert list(derangement(0, generator)) == []


def test_shuffled_prototypes_are_those_of_other_experts() -> None:
    shuffled, arrow = ROUTERS.get("shuffled"), ROUTERS.get("arrow")
    zero = LoraPair(torch.zeros(2, 16), torch.zeros(24, 2))
    layer = Layer("layer", [adapter(seed=0), zero, *(adapter(seed=n) for n in range(1, 5))])
    own = arrow(layer).directions
    mixed = shuffled(layer).directions
    assert own is not None
    assert mixed is not None
    taken = [next(at for at, row in enumerate(own) if torch.equal(row, one)) for one in mixed]
    assert sorted(taken) == list(range(6))
    assert [at for at, source in enumerate(taken) if at == source] == [1]
    again = shuffled(layer).directions
    assert again is not None
    torch.testing.assert_close(again, mixed, rtol=0, atol=0)
    other = shuffled(Layer("other", layer.residuals)).directions
    assert other is not None
    assert not torch.equal(other, mixed)


@pytest.mark.parametrize("name", ["random", "shuffled"])
def test_seed_and_group_decide_prototypes_that_are_controls(name: str) -> None:
    router, residuals = ROUTERS.get(name), [adapter(seed=n) for n in range(6)]

    def drawn(layer: Layer, seed: int = 0) -> torch.Tensor:
        directions = router(layer, router.parameters(seed=seed)).directions
        assert directions is not None
        return directions

    group = Layer("group", residuals)
    one, other = (Layer(name, residuals[::-1], tied=group) for name in ("one", "other"))
    assert torch.equal(drawn(one), drawn(other))
    assert torch.equal(drawn(one), drawn(group))
    assert not torch.equal(drawn(group, seed=1), drawn(group))
    assert not torch.equal(drawn(Layer("one", residuals)), drawn(group))
