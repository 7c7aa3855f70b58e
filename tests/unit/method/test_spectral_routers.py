"""spectr, norm and lag against loops over tokens and experts, on the full updates in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from common import dense, random_pair, relative_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import residual_dense, residual_factors

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.method.build import build
from gks_eval.method.declaration import Layer, Tokens
from gks_eval.method.lora import LoraPair, no_update, stack
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import ROUTERS
from gks_eval.method.routed import routed_update
from gks_eval.method.routers import blocks
from gks_eval.method.routers.spectrum import spectral_pairs, spectrum
from gks_eval.method.setting import Setting

NAMES = ["spectr", "norm", "lag"]


def input_directions(update: torch.Tensor) -> torch.Tensor:
    """Right singular vectors of a full matrix as rows, largest first, without the null space."""
    _, singular, right = torch.linalg.svd(update)
    kept = [v for s, v in zip(singular, right, strict=False) if s > 1e-5 * max(singular[0], 1e-9)]
    return torch.stack(kept) if kept else update[:0]


def score(router: str, update: torch.Tensor, x: torch.Tensor) -> float:
    if router == "norm":
        return math.sqrt(sum(float(row @ x) ** 2 for row in update))
    return math.sqrt(sum(float(v @ x) ** 2 for v in input_directions(update)))


def arrow_score(update: torch.Tensor, x: torch.Tensor) -> float:
    return max((abs(float(v @ x)) for v in input_directions(update)[:1]), default=0.0)


def shares_of(x: torch.Tensor, updates: Sequence[torch.Tensor], setting: Setting) -> list[float]:
    """Return one token's coefficients; a zero update is chosen after all others."""
    live = [bool(update.any()) for update in updates]
    candidates = list(range(len(updates)))
    if setting.router == "lag":
        by_arrow = sorted(candidates, key=lambda e: (not live[e], -arrow_score(updates[e], x)))
        candidates = by_arrow[: setting.parameters["shortlist"]]
    scores = [score(setting.router, update, x) for update in updates]
    best = sorted(candidates, key=lambda e: (not live[e], -scores[e]))
    chosen = best[: setting.parameters["top_k"]]
    weight = {e: math.exp(scores[e] / setting.parameters["temperature"]) for e in chosen}
    if setting.parameters.get("weights") == "equal":
        weight = dict.fromkeys(chosen, 1.0)
    return [weight.get(e, 0.0) / sum(weight.values()) for e in range(len(updates))]


def is_clear(x: torch.Tensor, updates: Sequence[torch.Tensor]) -> bool:
    """Whether no two experts tie, nor the first two directions of one, which float32 decides."""
    for found in (
        [score("spectr", update, x) for update in updates if update.any()],
        [score("norm", update, x) for update in updates if update.any()],
        [arrow_score(update, x) for update in updates if update.any()],
    ):
        ordered = sorted(found)
        if any(b - a < 1e-3 * b for a, b in pairwise(ordered)):
            return False
    return True


def residuals(
    pairs: Sequence[LoraPair], general: Sequence[LoraPair], rule: str
) -> list[torch.Tensor]:
    """Full updates; nothing is subtracted from an adapter that leaves the layer alone."""
    return [dense(pair) if pair.missing else residual_dense(pair, general, rule) for pair in pairs]


def check_shares(
    x_TK: torch.Tensor, pairs: list[LoraPair], general: list[LoraPair], setting: Setting
) -> None:
    setting = setting.fitted(len(pairs))
    updates = residuals(pairs, general, setting.rule)
    with torch.no_grad():
        update, found = routed_update(x_TK, build(pairs, general, setting, dtype=torch.float32))
    expected = torch.tensor([shares_of(x, updates, setting) for x in x_TK.double()])
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
    slow = torch.stack(
        [
            sum(c * (delta @ x) for c, delta in zip(row.double(), updates, strict=True))
            for row, x in zip(found, x_TK.double(), strict=True)
        ]
    )
    if setting.combine == "outputs":
        torch.testing.assert_close(update.double(), slow, rtol=1e-4, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    router=st.sampled_from(NAMES),
    rule=st.sampled_from(["factors", "delta", "orthogonal"]),
    ranks=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=6),
    equal_ranks=st.booleans(),
    dead=st.sets(st.integers(0, 5), max_size=1),  # two would tie
    missing=st.booleans(),
    general=st.integers(0, 2),
    top_k=st.integers(1, 4),
    shortlist=st.integers(4, 6),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    seed=st.integers(0, 10_000),
    few=st.sampled_from([0, blocks.FEW]),
)
def test_coefficients_against_loops(
    router: str,
    rule: str,
    ranks: list[int],
    equal_ranks: bool,
    dead: set[int],
    missing: bool,
    general: int,
    top_k: int,
    shortlist: int,
    temperature: float,
    seed: int,
    few: int,
) -> None:
    scalings = [1.0 + n for n in range(len(ranks))]
    if equal_ranks or (general and rule != "delta"):
        ranks, scalings = [ranks[0] for _ in ranks], [4.0 for _ in ranks]
    pairs = [
        random_pair(rank, seed=seed + n, scaling=scaling)
        for n, (rank, scaling) in enumerate(zip(ranks, scalings, strict=True))
    ]
    parts = [random_pair(ranks[0], seed=seed + 100 + n) for n in range(general)]
    for e in dead & set(range(len(pairs))):
        if missing:
            pairs[e] = no_update(pairs[e].shape)
        elif not general:
            pairs[e] = LoraPair(pairs[e].A, torch.zeros_like(pairs[e].B), pairs[e].scaling)
        elif general == 1:
            pairs[e] = parts[0]
    setting = Setting(
        router=router, rule=rule, combine="outputs", subtract=("en",) if general else (),
        top_k=min(top_k, len(pairs)), shortlist=shortlist, temperature=temperature,
    )  # fmt: skip
    x_TK = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    updates = residuals(pairs, parts, rule)
    assume(all(is_clear(x, updates) for x in x_TK.double()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "FEW", few)
        check_shares(x_TK, pairs, parts, setting)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5),
    equal=st.booleans(),
    below=st.integers(0, 2),
    more=st.integers(0, 2),
    tokens=st.integers(0, 3),
    few=st.sampled_from([0, blocks.FEW]),
)
def test_blocks_against_a_loop(
    shapes: list[tuple[int, int]], equal: bool, below: int, more: int, tokens: int, few: int
) -> None:
    shapes = [shapes[0] for _ in shapes] if equal else shapes
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    width = sum(q for _, q in shapes) + (more if below else 0)
    rows = torch.randn(below, width, generator=generator)
    x_TM = torch.randn(tokens, sum(r for r, _ in shapes) + below, generator=generator)
    expected = torch.zeros(tokens, width)
    for t in range(tokens):
        row = column = 0
        for block in made:
            r, q = block.shape
            for j in range(q):
                products = [x_TM[t, row + i] * block[i, j] for i in range(r)]
                expected[t, column + j] = sum(products)
            row, column = row + r, column + q
        expected[t] += x_TM[t, row:] @ rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "FEW", few)
        matrix = blocks.Blocks.of(made, rows)
    assert (matrix.whole is None) == (few == 0)
    torch.testing.assert_close(matrix(x_TM), expected)


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("rule", ["factors", "delta"])
def test_memory_grows_with_the_number_of_experts_not_with_its_square(
    router: str, rule: str
) -> None:
    def held(experts: int) -> int:
        pairs = [random_pair(2, seed=n) for n in range(experts)]
        setting = Setting(router=router, rule=rule, combine="outputs", top_k=1)
        choose: Any = build(pairs, [random_pair(2, seed=999)], setting, dtype=torch.float32).router
        found = [choose.core, choose.squares]
        tensors = [one for part in found if part is not None for one in vars(part).values()]
        return sum(one.numel() for one in tensors if one is not None)

    few = blocks.FEW + 1
    assert held(3 * few) <= 3.1 * held(few)


@pytest.mark.parametrize("general", [0, 1, 2])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_equal_weights(general: int, top_k: int) -> None:
    pairs = [random_pair(seed=n) for n in range(4)]
    parts = [random_pair(seed=20 + n) for n in range(general)]
    setting = Setting(
        router="spectr", rule="delta", combine="outputs", weights="equal", top_k=top_k
    )
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    check_shares(x, pairs, parts, setting)
    shares = routed_update(x, build(pairs, parts, setting, dtype=torch.float32))[1]
    assert set(shares.unique().tolist()) <= {0.0, 1 / top_k}


def signed(right: torch.Tensor) -> torch.Tensor:
    """Rows with their entry of largest magnitude made positive."""
    return torch.stack([v * v[v.abs().argmax()].sign() for v in right])


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("rule", ["factors", "delta"])
@pytest.mark.parametrize("general", [0, 2])
def test_combine_factors_mixes_the_factors_of_the_svd(router: str, rule: str, general: int) -> None:
    """(sum_e c_e U_e S_e)(sum_e c_e V_e^T) x, with signs fixed; a linear rule's part goes once."""
    pairs = [random_pair(3, seed=n) for n in range(4)]
    parts = [random_pair(3, seed=20 + n) for n in range(general)]
    setting = Setting(router=router, rule=rule, combine="factors", top_k=3)
    x_TK = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    found, shares = routed_update(x_TK, build(pairs, parts, setting, dtype=torch.float32))
    once = torch.zeros(24, 16, dtype=torch.float64)
    updates = [dense(pair) for pair in pairs]
    if rule == "delta" and parts:
        once = sum((dense(part) / len(parts) for part in parts), once)
    elif parts:
        factors = [residual_factors(pair, parts, rule) for pair in pairs]
        updates = [pairs[0].scaling * B @ A for A, B in factors]
    expected = []
    for x, share in zip(x_TK.double(), shares.double(), strict=True):
        left, right = torch.zeros(24, 3).double(), torch.zeros(3, 16).double()
        for c, update in zip(share, updates, strict=True):
            rows = signed(torch.linalg.svd(update).Vh[:3])
            left, right = left + c * update @ rows.T, right + c * rows
        expected.append(left @ (right @ x) - once @ x)
    assert relative_error(found, torch.stack(expected)) < 1e-5
    slow, _ = reference_update(x_TK, pairs, parts, setting)
    assert relative_error(slow, torch.stack(expected)) < 1e-5
    outputs = setting.model_copy(update={"combine": "outputs"})
    other = routed_update(x_TK, build(pairs, parts, outputs, dtype=torch.float32))
    torch.testing.assert_close(other[1], shares)
    assert relative_error(other[0], found.double()) > 0.1


def test_the_authors_mixture() -> None:
    """Scores are norms of every adapter's V^T x, times one constant; the best k share equally."""
    pairs = [random_pair(5, seed=n, scaling=2.0) for n in range(6)]
    x_TK = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    setting = Setting(
        router="spectr", weights="equal", top_k=4, subtract=(), combine="factors", rule="factors"
    )
    found, _ = routed_update(x_TK, build(pairs, [], setting, dtype=torch.float32))
    spectra = [torch.linalg.svd(dense(pair) / pair.scaling) for pair in pairs]
    A = torch.stack([pairs[0].scaling * signed(right[:5]) for _, _, right in spectra])
    B = torch.stack([dense(p) / p.scaling @ (a / p.scaling).T for p, a in zip(pairs, A)])  # noqa: B905
    vectors = torch.einsum("erk,tk->ter", A, x_TK.double())
    chosen = vectors.norm(dim=2).topk(4, dim=1).indices
    routes = torch.zeros(12, 6, dtype=torch.float64).scatter_(1, chosen, 0.25)
    mixed = torch.einsum("te,ter->tr", routes, vectors)
    expected = torch.einsum("te,edr,tr->td", routes, B, mixed)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("router", NAMES)
def test_one_chosen_expert_is_its_update_under_either_combination(router: str) -> None:
    pairs, parts = [random_pair(seed=n) for n in range(4)], [random_pair(seed=30)]
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    for rule in ("factors", "delta"):
        found = [
            routed_update(
                x,
                build(
                    pairs, parts, Setting(router=router, rule=rule, combine=combine, top_k=1),
                    dtype=torch.float32,
                ),
            )
            for combine in ("factors", "outputs")
        ]  # fmt: skip
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_directions_of_no_size_do_not_count() -> None:
    """Three copies of one row of A, and a column of B that is zero: two directions out of five."""
    pair = random_pair(5, seed=1)
    A, B = pair.A.clone(), pair.B.clone()
    A[1] = A[2] = A[0]
    B[:, 3] = 0
    flat = LoraPair(A, B, 2.0)
    seen = torch.linalg.qr(A[[0, 4]].double().T).Q
    x_TK = torch.randn(7, 16, generator=torch.Generator().manual_seed(2))
    for pairs in ([flat, random_pair(5, seed=9)], [flat, random_pair(2, seed=9)]):
        setting = Setting(router="spectr", subtract=(), combine="outputs", top_k=1)
        weights = build(pairs, [], setting, dtype=torch.float32)
        router: Any = weights.router
        inner = x_TK @ weights.read.T
        norms = router.norms(router.products(Tokens(x_TK, x_TK[:, :0], inner)))
        expected = (x_TK.double() @ seen).norm(dim=1)
        torch.testing.assert_close(norms[:, 0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("router", NAMES)
def test_tokens_have_no_product_but_those_of_the_mixture(router: str) -> None:
    pairs, parts = [random_pair(seed=n) for n in range(4)], [random_pair(seed=30)]
    for rule, rows in (("factors", 16), ("orthogonal", 16), ("delta", 20)):
        for dtype in (torch.float32, torch.bfloat16):
            setting = Setting(router=router, rule=rule, combine="outputs", top_k=1)
            weights = build(pairs, parts, setting, dtype=dtype)
            assert weights.directions is None
            assert weights.read.shape == (rows, 16)


def test_a_shortlist_of_all_is_spectr_and_one_of_one_is_arrow() -> None:
    pairs = [random_pair(seed=n) for n in range(6)]
    pairs[2] = LoraPair(torch.zeros(4, 16), torch.zeros(24, 4))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(4))

    def shares(router: str, **parameters: int) -> torch.Tensor:
        setting = Setting(router=router, subtract=(), combine="outputs", **parameters)
        return routed_update(x, build(pairs, [], setting, dtype=torch.float32))[1]

    torch.testing.assert_close(shares("lag", shortlist=6, top_k=3), shares("spectr", top_k=3))
    torch.testing.assert_close(shares("lag", shortlist=1), shares("arrow", top_k=1))
    between = shares("lag", shortlist=3)
    assert not torch.equal(between, shares("spectr", top_k=1))
    assert not torch.equal(between, shares("arrow", top_k=1))


@pytest.mark.parametrize("router", NAMES)
def test_scores_of_16_bit_layers(router: str) -> None:
    """Shares of all experts, in bfloat16 and with a general part once, stay near float64's."""
    pairs, parts = [random_pair(seed=n) for n in range(3)], [random_pair(seed=30)]
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    for rule in ("factors", "delta"):
        setting = Setting(router=router, rule=rule, combine="outputs", top_k=3)
        updates = [residual_dense(pair, parts, rule) for pair in pairs]
        weights = build(pairs, parts, setting, dtype=torch.bfloat16)
        found = routed_update(x, weights)[1]
        expected = torch.tensor([shares_of(row, updates, setting.fitted(3)) for row in x.double()])
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 0.03


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_task_that_holds_the_general_part(router: str, orthogonal: bool) -> None:
    """Subtracting it leaves a residual whose span the general part's directions are not in."""
    part, rest = random_pair(3, seed=30), random_pair(2, seed=31)
    if orthogonal:
        basis = torch.linalg.qr(part.A.T).Q
        rest = LoraPair(rest.A - (rest.A @ basis) @ basis.T, rest.B, rest.scaling)
    pairs = [stack([part, rest], [1.0, 1.0]), *(random_pair(5, seed=n) for n in range(3))]
    setting = Setting(router=router, rule="delta", combine="outputs", top_k=4)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(5))
    check_shares(x, pairs, [part], setting)


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("task", [0.3, 0.05, 0.005])
def test_a_residual_that_is_nearly_the_general_part(router: str, task: float) -> None:
    """With a shared B its one direction is near the general part's direction, but not the same."""
    part, own = random_pair(1, seed=30), random_pair(1, seed=31)
    pairs = [LoraPair(task * own.A, part.B, own.scaling), *(random_pair(1, seed=n) for n in (1, 2))]
    setting = Setting(router=router, rule="delta", combine="outputs", top_k=3, temperature=0.3)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(5))
    check_shares(x, pairs, [part], setting)


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("zero", ["same adapter", "no update"])
@pytest.mark.parametrize("first", [0, 1])
def test_an_expert_that_adds_no_direction_to_the_general_part(
    router: str, zero: str, first: int
) -> None:
    """Its residual is zero, which comes last, or not, with the general part's A."""
    part = random_pair(3, seed=30)
    pairs = [random_pair(3, seed=n) for n in range(4)]
    pairs[first] = part if zero == "same adapter" else no_update(part.shape)
    pairs[1 - first] = LoraPair(part.A, random_pair(3, seed=9).B, part.scaling)
    setting = Setting(router=router, rule="delta", combine="outputs", top_k=3)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(5))
    check_shares(x, pairs, [part], setting)


@pytest.mark.parametrize("router", NAMES)
def test_small_updates_with_a_direction_of_no_size_and_a_general_part(router: str) -> None:
    """Singular values below 1 and of 0, of which the general part is subtracted once."""
    pairs = [random_pair(seed=n, scaling=0.02 * (n + 1)) for n in range(3)]
    B = pairs[1].B.clone()
    B[:, 3] = 0
    pairs[1] = LoraPair(pairs[1].A, B, pairs[1].scaling)
    setting = Setting(router=router, rule="delta", combine="outputs", top_k=2)
    x = 20 * torch.randn(12, 16, generator=torch.Generator().manual_seed(5))
    check_shares(x, pairs, [random_pair(seed=30, scaling=0.03)], setting)


def test_a_general_part_in_every_span_counts_once() -> None:
    """3 experts of rank 4 and 2 general adapters: products of 12 + 8 rows out of 20."""
    pairs = [random_pair(width_in=64, seed=n) for n in range(3)]
    parts = [random_pair(width_in=64, seed=30 + n) for n in range(2)]
    for router, products in (("spectr", 3 * 4 + 8), ("norm", 3 * 8 + 8), ("lag", 3 * 12)):
        setting = Setting(router=router, rule="delta", combine="outputs", top_k=1)
        chosen: Any = build(pairs, parts, setting, dtype=torch.float32).router
        assert chosen.core.whole.shape == (3 * 4 + 8, products)


@pytest.mark.parametrize("router", NAMES)
def test_scores_after_shared_starts(router: str) -> None:
    """The span of task and general A's is nearly flat; 16 bits cannot tell its directions apart."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(4, 64, generator=generator) / 8

    def trained(seed: int) -> LoraPair:
        pair = random_pair(width_in=64, seed=seed)
        return LoraPair(start + 0.05 * pair.A, pair.B, pair.scaling)

    pairs, parts = [trained(n) for n in range(3)], [trained(9)]
    setting = Setting(router=router, rule="delta", combine="outputs", top_k=3)
    updates = residuals(pairs, parts, "delta")
    x = torch.randn(100, 64, generator=generator).bfloat16()
    expected = torch.tensor([shares_of(row, updates, setting.fitted(3)) for row in x.double()])
    in_16_bits = 0.02 if router == "norm" else 1e-4
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, in_16_bits)):
        weights = build(pairs, parts, setting, dtype=dtype)
        found = routed_update(x.to(dtype), weights)[1]
        assert (found - expected).abs().max() < tolerance
        if router != "norm":
            assert (weights.directions is not None) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("router", NAMES)
def test_gradients_are_those_of_the_formula_and_finite_for_a_zero_update(router: str) -> None:
    pairs = [random_pair(seed=n) for n in range(3)]
    pairs[1] = LoraPair(torch.zeros(4, 16), torch.zeros(24, 4))
    setting = Setting(router=router, subtract=(), combine="outputs", top_k=3)
    weights = build(pairs, [], setting, dtype=torch.float32)
    output = torch.randn(5, 24, generator=torch.Generator().manual_seed(8))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(7)).requires_grad_()
    (routed_update(x, weights)[0] * output).sum().backward()
    wide = x.detach().double().requires_grad_()
    updates = [dense(pair) for pair in pairs]
    maps = updates if router == "norm" else [input_directions(update) for update in updates]
    norms = torch.stack([((wide @ m.T) ** 2).sum(1).clamp_min(1e-30).sqrt() for m in maps], dim=1)
    mixed = torch.einsum("te,edk,tk->td", norms.softmax(1), torch.stack(updates), wide)
    (mixed * output).sum().backward()
    assert x.grad is not None
    assert wide.grad is not None
    assert relative_error(x.grad, wide.grad) < 1e-4


def test_spectra_are_those_of_the_full_updates_in_order() -> None:
    scalings = (2.0, -0.5, 1.0, -3.0, 0.25)
    pairs = [
        random_pair(rank, seed=n, scaling=scaling)
        for n, (rank, scaling) in enumerate(zip((3, 1, 5, 3, 1), scalings, strict=True))
    ]
    for pair, (values, rows) in zip(pairs, spectrum(pairs), strict=True):
        _, singular, right = torch.linalg.svd(dense(pair))
        torch.testing.assert_close(values, singular[: len(values)])
        assert singular[len(values) :].max() < 1e-6
        torch.testing.assert_close(rows, signed(right[: len(values)]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1.0, 1.5e-6], 2),
        ([1.0, 0.7e-6], 1),
        # A sum over the rank is the measure, not its mean or its largest part.
        ([1.0] * 9 + [5e-6], 9),
        ([1.0] * 9 + [2e-5], 10),
        ([1e-9, 1e-12], 2),
    ],
)
@pytest.mark.parametrize("scaling", [1.0, 1e-3])
def test_singular_values_of_rounding_errors_are_zero(
    values: list[float], kept: int, scaling: float
) -> None:
    generator = torch.Generator().manual_seed(6)
    left, right = (torch.randn(n, 10, generator=generator).double() for n in (24, 16))
    A = torch.linalg.qr(right).Q[:, : len(values)].T
    B = torch.linalg.qr(left).Q[:, : len(values)] * torch.tensor(values).double()
    ((found, rows),) = spectrum([LoraPair(A, B, scaling)])
    expected = [scaling * value for value in values[:kept]] + [0.0] * (len(values) - kept)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=0.0)
    assert (rows.norm(dim=1) > 0).tolist() == [n < kept for n in range(len(values))]


def test_a_spectral_pair_is_the_same_update() -> None:
    for pair in (
        random_pair(5, seed=1),
        stack([random_pair(4, 10, 6, seed=n) for n in range(4)], [1.0, -0.5, 0.5, 2.0]),
        LoraPair(torch.zeros(4, 16), torch.zeros(24, 4), 2.0),
    ):
        (found,) = spectral_pairs([pair])
        assert relative_error(found.delta(), dense(pair)) < 1e-5
        gram = found.A @ found.A.T
        torch.testing.assert_close(gram, torch.diag(gram.diag().round()), rtol=0, atol=1e-6)
        columns = found.B.norm(dim=0)
        assert (columns[1:] <= columns[:-1] + 1e-6).all()
        assert (found.A.amax(dim=1) >= found.A.abs().amax(dim=1)).all()


def test_a_layer_that_stands_alone_reads_its_own_factors() -> None:
    pairs = [random_pair(3, seed=n) for n in range(3)]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(7))
    inner = x @ torch.cat([pair.A for pair in pairs]).T
    method = ROUTERS.get("norm")
    found: Any = method(Layer("", pairs)).choose
    norms = found.norms(found.products(Tokens(x, x[:, :0], inner)))
    expected = torch.stack([x.double() @ dense(pair).T for pair in pairs]).norm(dim=2).T
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=1e-5)


def test_unequal_adapters_are_refused_under_combine_factors() -> None:
    for odd in (random_pair(3, seed=5), random_pair(scaling=1.0, seed=5)):
        with pytest.raises(CompatibilityError, match="preset=exact"):
            build(
                [random_pair(seed=1), odd], [],
                Setting(router="spectr", subtract=(), combine="factors"), dtype=torch.float32,
            )  # fmt: skip


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="temperature=2 has no effect with weights=equal"):
        Setting.parse("spectr;weights=equal;temperature=2")[0].fitted(4)
    with pytest.raises(UsageError, match="top_k=3 is above shortlist=2"):
        Setting.parse("lag;top_k=3;shortlist=2")[0].fitted(4)
    for router in NAMES:
        with pytest.raises(UsageError, match="top_k=5 is above the 4 experts"):
            Setting.parse(f"{router};top_k=5")[0].fitted(4)
        assert Setting.parse(f"{router};top_k=-1")[0].fitted(4).parameters["top_k"] == 4
    with pytest.raises(UsageError, match="weights=odd: needs one of softmax, equal"):
        Setting.parse("spectr;weights=odd")
    fitted = [Setting.parse(text)[0].fitted(4) for text in ("lag", "lag;shortlist=9")]
    assert [one.parameters["shortlist"] for one in fitted] == [4, 4]
    assert fitted[0].digest() == fitted[1].digest()
