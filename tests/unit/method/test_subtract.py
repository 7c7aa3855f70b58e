"""Every rule of subtraction against its closed form, in float64."""

from __future__ import annotations

import oracle
import pytest
import torch
from common import dense, random_pair, relative_error

from gks_eval.errors import CompatibilityError
from gks_eval.method.build import build
from gks_eval.method.declaration import Layer
from gks_eval.method.lora import LoraPair, no_update, stack
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import MERGES, RULES
from gks_eval.method.routed import routed_update
from gks_eval.method.rules.delta import mean_update
from gks_eval.method.rules.rounding import without_rounding
from gks_eval.method.rules.scale import Scaled
from gks_eval.method.setting import Setting

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
COUNTS = (1, 2, 3)
# Not `cross_lingual`, which also adds: tests/unit/library/test_library_settings.py.
SUBTRACTING = ["factors", "delta", "orthogonal"]


def subtract(task: LoraPair, general: list[LoraPair], rule: str) -> LoraPair:
    return RULES.get(rule)(task, general)


def pairs(count: int, seed: int = 10, **shape) -> list[LoraPair]:
    return [random_pair(seed=seed + n, dtype=torch.float64, **shape) for n in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_factors_subtracts_mean_factors(count: int) -> None:
    task, general = pairs(1)[0], pairs(count, 20)
    residual = subtract(task, general, "factors")
    torch.testing.assert_close(residual.A, task.A - sum(g.A for g in general) / count, **TIGHT)
    torch.testing.assert_close(residual.B, task.B - sum(g.B for g in general) / count, **TIGHT)
    assert residual.scaling == task.scaling
    assert residual.rank == task.rank


@pytest.mark.parametrize("count", COUNTS)
def test_delta_subtracts_the_mean_update(count: int) -> None:
    task, general = pairs(1)[0], pairs(count, 20)
    residual = subtract(task, general, "delta")
    expected = dense(task) - sum(dense(g) for g in general) / count
    torch.testing.assert_close(residual.delta(), expected, **TIGHT)
    assert residual.rank == 4 * (1 + count)


def test_delta_allows_any_rank_and_scaling() -> None:
    task = random_pair(2, scaling=8.0, seed=1, dtype=torch.float64)
    general = [
        random_pair(3, scaling=0.5, seed=2, dtype=torch.float64),
        random_pair(6, scaling=1.5, seed=3, dtype=torch.float64),
    ]
    expected = dense(task) - (dense(general[0]) + dense(general[1])) / 2
    torch.testing.assert_close(subtract(task, general, "delta").delta(), expected, **TIGHT)
    for rule in ("factors", "orthogonal"):
        with pytest.raises(CompatibilityError, match=f"rule={rule} needs one rank"):
            subtract(task, general, rule)


def test_factors_and_delta_differ_by_the_cross_terms() -> None:
    task, (general,) = pairs(1)[0], pairs(1, 20)
    by_factors = subtract(task, [general], "factors").delta()
    s = task.scaling
    cross = s * (2 * general.B @ general.A - task.B @ general.A - general.B @ task.A)
    by_delta = subtract(task, [general], "delta").delta()
    torch.testing.assert_close(by_factors, by_delta + cross, **TIGHT)


@pytest.mark.parametrize("count", COUNTS)
def test_orthogonal_residual_is_orthogonal_to_the_mean_general_factors(count: int) -> None:
    task, general = pairs(1)[0], pairs(count, 20)
    residual = subtract(task, general, "orthogonal")
    mean_A = sum(g.A for g in general) / count
    mean_B = sum(g.B for g in general) / count
    assert (residual.A @ mean_A.T).abs().max() < 1e-13
    assert (mean_B.T @ residual.B).abs().max() < 1e-13
    # What was taken away lies in the general factors' spans: the projector is the nearest point.
    removed_A, removed_B = task.A - residual.A, task.B - residual.B
    solved_A = torch.linalg.lstsq(mean_A.T, removed_A.T).solution
    solved_B = torch.linalg.lstsq(mean_B, removed_B).solution
    torch.testing.assert_close(mean_A.T @ solved_A, removed_A.T, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(mean_B @ solved_B, removed_B, rtol=1e-9, atol=1e-10)
    assert residual.scaling == task.scaling


def test_orthogonal_to_rank_deficient_factors_removes_their_span_and_no_more() -> None:
    task, (general,) = pairs(1)[0], pairs(1, 20)
    A = general.A.clone()
    A[2], A[3] = A[0], A[0] - 2 * A[1]  # row space of dimension 2
    B = torch.zeros_like(general.B)  # never trained
    residual = subtract(task, [LoraPair(A, B, 4.0)], "orthogonal")
    span = torch.linalg.qr(A[:2].T).Q
    torch.testing.assert_close(residual.A, task.A - task.A @ span @ span.T, **TIGHT)
    torch.testing.assert_close(residual.B, task.B, **TIGHT)


def test_orthogonal_keeps_weak_directions_of_the_general_adapter() -> None:
    # A direction 1e4 times weaker than the strongest is still one the general adapter uses.
    task = random_pair(seed=1, width_in=1024)
    general = random_pair(seed=2, width_in=1024)
    A = general.A.clone()
    A[3] *= 1e-4
    residual = subtract(task, [LoraPair(A, general.B, 4.0)], "orthogonal")
    assert (residual.A @ general.A.T).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_orthogonal_does_not_depend_on_the_size_of_the_general_factors(size: float) -> None:
    task, (general,) = pairs(1)[0], pairs(1, 20)
    scaled = LoraPair(general.A * size, general.B / size, general.scaling)
    expected = subtract(task, [general], "orthogonal")
    found = subtract(task, [scaled], "orthogonal")
    torch.testing.assert_close(found.A, expected.A, **TIGHT)
    torch.testing.assert_close(found.B, expected.B, **TIGHT)


def test_what_agrees_is_zero_and_the_rest_is_kept_however_weak() -> None:
    # Rows of A and columns of B of very different size. The first of A and the second of B are
    # the general adapters' own, and the mean of three equal float32 numbers is not always exact.
    task = random_pair(seed=1, width_in=64, width_out=96)
    sizes = torch.tensor([1e4, 1.0, 1e-4, 1e4])
    task = LoraPair(task.A * sizes[:, None], task.B * sizes.roll(1), task.scaling)
    general = []
    for seed in (2, 3, 4):
        other = random_pair(seed=seed, width_in=64, width_out=96)
        A, B = other.A * sizes[:, None], other.B * sizes.roll(1)
        A[0], B[:, 1] = task.A[0], task.B[:, 1]
        general.append(LoraPair(A, B, task.scaling))
    expected_A = task.A.double() - sum(g.A.double() for g in general) / 3
    expected_B = task.B.double() - sum(g.B.double() for g in general) / 3
    residual = subtract(task, general, "factors")
    assert not residual.A[0].any()
    assert not residual.B[:, 1].any()
    for n in (1, 2, 3):
        assert relative_error(residual.A[n], expected_A[n]) < 1e-5
    for n in (0, 2, 3):
        assert relative_error(residual.B[:, n], expected_B[:, n]) < 1e-5


def test_16_units_of_the_own_rows_and_columns_are_rounding_errors() -> None:
    own = LoraPair(torch.ones(2, 4), torch.ones(9, 2), 0.5)
    units = torch.tensor([15.0, 17.0]) * torch.finfo(torch.float32).eps
    A_ERK, B_EDR = units[None, :, None].repeat(1, 1, 4), units[None, None].repeat(1, 9, 1)
    (found,) = without_rounding(A_ERK, B_EDR, [own])
    assert found.scaling == 0.5
    assert found.A.all(dim=1).tolist() == found.A.any(dim=1).tolist() == [False, True]
    assert found.B.all(dim=0).tolist() == found.B.any(dim=0).tolist() == [False, True]


def test_a_general_adapter_without_the_layer_counts_in_the_mean_and_adds_no_rank() -> None:
    task, general = random_pair(3, seed=1), random_pair(2, seed=2)
    nothing = no_update(task.shape)
    found = subtract(task, [nothing, general, nothing], "delta")
    assert found.rank == 5
    torch.testing.assert_close(found.delta(), task.delta() - general.delta() / 3)
    alone = mean_update([nothing, nothing], Scaled())
    assert alone.rank == 1
    assert not alone.delta().any()


def test_which_rules_are_linear_in_the_updates() -> None:
    ours = [rule for rule in RULES.usable() if RULES.is_own(rule)]
    assert [rule.name for rule in ours if rule.linear] == ["delta"]


@pytest.mark.parametrize("rule", SUBTRACTING)
def test_zero_general_adapter_changes_no_update(rule: str) -> None:
    task = pairs(1)[0]
    zero = LoraPair(torch.zeros_like(task.A), torch.zeros_like(task.B), task.scaling)
    torch.testing.assert_close(subtract(task, [zero], rule).delta(), dense(task), **TIGHT)


@pytest.mark.parametrize("rule", SUBTRACTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_task_equal_to_the_general_leaves_nothing(rule: str, dtype: torch.dtype) -> None:
    task = random_pair(seed=1, dtype=dtype)
    twin = LoraPair(task.A.clone(), task.B.clone(), task.scaling)
    left = subtract(task, [twin], rule).delta()
    assert left.abs().max() <= 8 * torch.finfo(dtype).eps * dense(task).abs().max()


@pytest.mark.parametrize("rule", SUBTRACTING)
def test_nothing_to_subtract_returns_the_task(rule: str) -> None:
    task = pairs(1)[0]
    assert subtract(task, [], rule) is task


@pytest.mark.parametrize("rule", SUBTRACTING)
@pytest.mark.parametrize("count", COUNTS)
def test_inputs_are_never_written_to(rule: str, count: int) -> None:
    task, general = pairs(1)[0], pairs(count, 20)
    before = [(pair.A.clone(), pair.B.clone()) for pair in (task, *general)]
    residual = subtract(task, general, rule)
    residual.A.add_(1.0)
    residual.B.add_(1.0)
    for pair, (A, B) in zip((task, *general), before, strict=True):
        assert torch.equal(pair.A, A)
        assert torch.equal(pair.B, B)


def test_general_update_is_the_mean_of_the_updates() -> None:
    general = [random_pair(r, scaling=r / 2, seed=r, dtype=torch.float64) for r in (1, 2, 5)]
    expected = sum(dense(pair) for pair in general) / 3
    torch.testing.assert_close(mean_update(general, Scaled()).delta(), expected, **TIGHT)


@pytest.mark.parametrize("rule", ["factors", "orthogonal"])
def test_unequal_scalings_need_the_exact_rule(rule: str) -> None:
    task, general = random_pair(seed=1), random_pair(seed=2, scaling=2.0)
    with pytest.raises(CompatibilityError, match=rf"rule={rule} needs one scaling.*preset=exact"):
        subtract(task, [general], rule)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("rule", SUBTRACTING)
def test_scale_multiplies_what_is_subtracted(rule: str, scale: float) -> None:
    task, general = pairs(1)[0], pairs(2, 20)
    found = RULES.get(rule)(task, general, Scaled(scale=scale))
    expected = oracle.residual_dense(task, general, rule, scale)
    torch.testing.assert_close(found.delta(), expected, **TIGHT)
    if scale == 1.0:
        default = subtract(task, general, rule)
        assert torch.equal(found.A, default.A)
        assert torch.equal(found.B, default.B)
    # Under delta the change is linear in the scale, under the other rules it is not.
    change, unit = found.delta() - dense(task), subtract(task, general, rule).delta() - dense(task)
    linear = torch.allclose(change, scale * unit, atol=1e-12)
    assert linear == (rule == "delta" or scale in (0.0, 1.0))


def crowded(experts: list[LoraPair]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the experts' updates and what Pico makes of them, from the eigenvectors of B B^T."""
    gram = sum(pair.scaling**2 * pair.B @ pair.B.T for pair in experts)
    values, vectors = torch.linalg.eigh(gram)
    projector = torch.eye(len(gram), dtype=torch.float64)
    for value, vector in zip(values.clamp_min(0), vectors.T, strict=True):
        factor = 1 / (1 + (len(experts) - 1) * float(value) / max(float(values.sum()), 1e-300))
        projector -= (1 - factor) * torch.outer(vector, vector)
    updates = [dense(pair) for pair in experts]
    return updates, [projector @ update for update in updates]


LIBRARIES = {
    "one": pairs(1),
    "equal ranks": pairs(3),
    "odd ranks": [random_pair(r, scaling=r / 2, seed=r, dtype=torch.float64) for r in (1, 3, 5)],
    "one is zero": [*pairs(2), LoraPair(pairs(1)[0].A, torch.zeros_like(pairs(1)[0].B), 4.0)],
    "one lacks the layer": [*pairs(2), no_update((24, 16)).to(torch.float64)],
    "more directions than outputs": pairs(7, width_out=9),
}


@pytest.mark.parametrize("experts", LIBRARIES.values(), ids=LIBRARIES.keys())
@pytest.mark.parametrize("rescale", ["none", "each", "merged"])
def test_pico_scales_shared_output_directions_down(experts: list[LoraPair], rescale: str) -> None:
    rule = RULES.get("pico")
    chosen = rule.parameters(rescale=rescale)
    found = rule.residuals(experts, [], chosen)
    before, after = crowded(experts)
    for one, task, whole, expected in zip(found, experts, before, after, strict=True):
        if rescale == "each" and expected.norm() > 0:
            expected = expected * whole.norm() / expected.norm()
        torch.testing.assert_close(one.delta(), expected, **TIGHT)
        assert torch.equal(one.A, task.A)
        assert one.missing == task.missing
    merge = MERGES.get("mean")(Layer("", found))
    assert rule.after_merge is not None
    merged = rule.after_merge(merge, experts, chosen).delta()
    expected = merge.delta()
    if rescale == "merged":
        norm = sum(float(update.norm()) for update in before) / len(before)
        expected = expected * norm / expected.norm()
    torch.testing.assert_close(merged, expected, **TIGHT)


def test_pico_of_experts_with_one_common_direction() -> None:
    # B_1 = [b c], B_2 = [b d], all orthonormal: S^2 = 2, 1, 1, so b has the share 1/2 and the
    # factor 1 / (1 + 1/2) = 2/3, c and d the share 1/4 and the factor 4/5.
    eye = torch.eye(5, dtype=torch.float64)
    experts = [LoraPair(eye[:2], eye[:, [0, n]]) for n in (1, 2)]
    for n, found in enumerate(RULES.get("pico").residuals(experts, []), 1):
        expected = torch.zeros(5, 2, dtype=torch.float64)
        expected[0, 0], expected[n, 1] = 2 / 3, 4 / 5
        torch.testing.assert_close(found.B, expected, **TIGHT)


@pytest.mark.parametrize("router", ["merge:mean", "merge:ties", "merge:svd", "arrow", "uniform"])
@pytest.mark.parametrize("rescale", ["merged", "each"])
def test_pico_in_a_setting(router: str, rescale: str) -> None:
    experts = [random_pair(seed=n) for n in range(3)]
    setting = Setting(router=router, rule="pico", rescale=rescale, combine="outputs", top_k=2)
    assert setting.subtract == ()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    found, _ = routed_update(x, build(experts, [], setting, dtype=torch.float32))
    slow, _ = reference_update(x, experts, [], setting)
    assert relative_error(found, slow) < 1e-5
    plain = Setting(router=router, combine="outputs", subtract=(), top_k=2)
    other, _ = routed_update(x, build(experts, [], plain, dtype=torch.float32))
    assert relative_error(found, other) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("merge", ["core_space", "mean", "svd"])
def test_pico_gives_no_norm_to_a_merge_that_cancels(merge: str, dtype: torch.dtype) -> None:
    rule, method = RULES.get("pico"), MERGES.get(merge)
    a, b = (random_pair(seed=n, dtype=dtype) for n in range(2))
    experts = [a, b, stack([a, b], [-1.0, -1.0])]
    chosen = method.parameters(**({"inner": "mean"} if merge == "core_space" else {}))
    merged = method(Layer("", rule.residuals(experts, [])), chosen)
    assert rule.after_merge is not None
    found = rule.after_merge(merged, experts, rule.parameters())
    assert found.delta().norm() < 1e-6 * a.delta().norm()


def test_pico_subtracts_no_general_adapter() -> None:
    with pytest.raises(CompatibilityError, match="rule=pico subtracts no general adapter"):
        subtract(pairs(1)[0], pairs(1, 20), "pico")
