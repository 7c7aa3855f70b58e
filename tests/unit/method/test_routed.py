"""The two matrix products: shapes, memory, gradients, and the seam for other routers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import oracle
import pytest
import torch
from common import LargestTensor, dense, random_pair, relative_error

from gks_eval.errors import CompatibilityError
from gks_eval.method.build import build
from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
from gks_eval.method.decorators import router
from gks_eval.method.lora import LoraPair
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import ROUTERS
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting
from gks_eval.method.weights import to_device

SETTINGS = {
    "outputs": Setting(rule="delta", combine="outputs", top_k=2),
    "factors": Setting(rule="factors", combine="factors", top_k=2),
    "exact factors": Setting(rule="delta", combine="factors", top_k=2),
    "uniform": Setting(router="uniform", rule="orthogonal", combine="outputs"),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def experts(count: int = 4, **shape: Any) -> list[LoraPair]:
    return [random_pair(seed=n, **shape) for n in range(count)]


def general(count: int = 2, **shape: Any) -> list[LoraPair]:
    return [random_pair(seed=50 + n, **shape) for n in range(count)]


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_any_number_of_tokens(setting: Setting, dtype: torch.dtype, tokens: int) -> None:
    weights = build(experts(), general(), setting, dtype=dtype)
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = routed_update(x, weights)[0]
    assert found.shape == (tokens, 24)
    assert found.dtype == dtype
    # A token's update does not depend on its neighbours.
    for t in range(0, tokens, 97):
        alone = routed_update(x[t : t + 1], weights)[0][0]
        tolerance = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(found[t], alone, **tolerance)


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_nothing_of_size_tokens_by_experts_by_outputs(
    setting: Setting, dtype: torch.dtype, grad: bool
) -> None:
    tokens, count, width_in, width_out = 64, 8, 32, 256
    shape = {"width_in": width_in, "width_out": width_out}
    weights = build(experts(count, **shape), general(**shape), setting, dtype=dtype)
    x = torch.randn(tokens, width_in).to(dtype)
    with torch.set_grad_enabled(grad), LargestTensor() as largest:
        routed_update(x, weights)[0]
    assert largest.numel >= tokens * width_out  # the result itself: the recorder sees
    assert largest.numel <= max(tokens * width_out, weights.write.numel(), weights.read.numel())
    assert largest.numel < tokens * count * width_out / 4


def differentiable(
    x_TK: torch.Tensor, pairs: list[LoraPair], subtracted: list[LoraPair], setting: Setting
) -> torch.Tensor:
    """The formulas with full float64 matrices, left to autograd."""
    rule = setting.rule
    residuals = [oracle.residual_dense(pair, subtracted, rule) for pair in pairs]
    shares_TE = torch.full((len(x_TK), len(pairs)), 1.0 / len(pairs), dtype=torch.float64)
    if setting.router == "arrow":
        directions = torch.stack([oracle.top_direction(update)[0] for update in residuals])
        scores_TE = (x_TK @ directions.T).abs() / setting.parameters["temperature"]
        kept = scores_TE.topk(setting.parameters["top_k"]).values[:, -1:]
        shares_TE = scores_TE.masked_fill(scores_TE < kept, float("-inf")).softmax(dim=1)
    if setting.combine == "outputs":
        return torch.einsum("te,edk,tk->td", shares_TE, torch.stack(residuals), x_TK)
    if rule == "delta":
        A, B = [p.A.double() for p in pairs], [p.B.double() for p in pairs]
        once = sum(dense(pair) for pair in subtracted) / len(subtracted)
    else:
        A, B = zip(*(oracle.residual_factors(p, subtracted, rule) for p in pairs), strict=True)
        once = torch.zeros(pairs[0].shape, dtype=torch.float64)
    mixed_A = torch.einsum("te,erk->trk", shares_TE, torch.stack(list(A)))
    mixed_B = torch.einsum("te,edr->tdr", shares_TE, torch.stack(list(B)))
    return 4.0 * torch.einsum("tdr,trk,tk->td", mixed_B, mixed_A, x_TK) - x_TK @ once.T


@every_setting
def test_gradients_are_those_of_the_formula(setting: Setting) -> None:
    pairs, subtracted = experts(), general()
    weights = build(pairs, subtracted, setting, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 16, generator=generator)
    output = torch.randn(5, 24, generator=generator)
    found = x.clone().requires_grad_()
    (routed_update(found, weights)[0] * output).sum().backward()
    expected = x.double().requires_grad_()
    (differentiable(expected, pairs, subtracted, setting) * output).sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    assert relative_error(found.grad, expected.grad) < 1e-5


@every_setting
def test_recording_gradients_changes_no_number(setting: Setting) -> None:
    weights = build(experts(), general(), setting, dtype=torch.float32)
    x = torch.randn(7, 16)
    with torch.no_grad():
        without = routed_update(x, weights)[0]
    assert torch.equal(routed_update(x.clone().requires_grad_(), weights)[0].detach(), without)


def test_building_and_running_write_to_nothing() -> None:
    pairs, subtracted = experts(), general()
    before = [(pair.A.clone(), pair.B.clone()) for pair in (*pairs, *subtracted)]
    for setting in SETTINGS.values():
        weights = build(pairs, subtracted, setting, dtype=torch.float32)
        held = weights.read.clone(), weights.write.clone()
        x = torch.randn(3, 16)
        copy = x.clone()
        with torch.no_grad():
            first = routed_update(x, weights)[0]
            assert torch.equal(first, routed_update(x, weights)[0])
        assert torch.equal(x, copy)
        assert torch.equal(weights.read, held[0])
        assert torch.equal(weights.write, held[1])
    for pair, (A, B) in zip((*pairs, *subtracted), before, strict=True):
        assert torch.equal(pair.A, A)
        assert torch.equal(pair.B, B)


@pytest.mark.parametrize("rule", ["factors", "delta", "orthogonal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_adapters_of_another_dtype(rule: str, dtype: torch.dtype) -> None:
    setting = Setting(rule=rule, combine="outputs", top_k=2)
    pairs, subtracted = [p.to(dtype) for p in experts()], [p.to(dtype) for p in general()]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    found = routed_update(x, build(pairs, subtracted, setting, dtype=torch.float32))[0]
    expected = oracle.routed(x, pairs, subtracted, setting)
    assert (expected.tie_gap > 1e-4).all()
    assert relative_error(found, expected.update) < 1e-5


def test_a_dead_expert_is_chosen_last() -> None:
    pairs = experts(4)
    twin = LoraPair(pairs[1].A.clone(), pairs[1].B.clone(), pairs[1].scaling)
    x = torch.randn(20, 16)
    for rule in ("factors", "delta", "orthogonal"):
        for top_k, dead_share in ((3, 0.0), (4, None)):
            setting = Setting(rule=rule, combine="outputs", top_k=top_k, subtract=("en",))
            weights = build(pairs, [twin], setting, dtype=torch.float32)
            shares = routed_update(x, weights)[1]
            torch.testing.assert_close(shares.sum(1), torch.ones(20))
            assert (shares[:, 1] == 0).all() if dead_share == 0.0 else (shares[:, 1] > 0).all()


@pytest.mark.parametrize(
    ("rule", "combine", "change"),
    [
        ("delta", "factors", {"rank": 3}),
        ("delta", "factors", {"scaling": 1.0}),
        ("factors", "outputs", {"rank": 3}),
        ("orthogonal", "outputs", {"scaling": 1.0}),
    ],
)
def test_unequal_experts_where_the_formula_needs_equal_ones(
    rule: str, combine: str, change: dict[str, Any]
) -> None:
    pairs = [*experts(3), random_pair(seed=9, **change)]
    with pytest.raises(CompatibilityError, match=r"needs one (rank|scaling).*preset=exact"):
        build(pairs, general(1), Setting(rule=rule, combine=combine), dtype=torch.float32)


@dataclass(frozen=True)
class ByFirstInput:
    """A router of one's own: expert 0 for tokens of positive score with it, else expert 1."""

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        scores_TE = tokens.scores
        first = (scores_TE[:, 0] > 0).float()
        rest = torch.zeros(len(scores_TE), scores_TE.shape[1] - 2)
        return torch.cat([first[:, None], 1 - first[:, None], rest], dim=1)


@dataclass(frozen=True)
class Ramp:
    """A router that reads no scores: shares grow with the expert's number."""

    experts: int

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        shares = torch.arange(1, self.experts + 1, dtype=torch.float32)
        return (shares / shares.sum()).unsqueeze(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("built_for", ["arrow", "uniform"])
def test_the_seam_takes_a_router_that_reads_no_scores(dtype: torch.dtype, built_for: str) -> None:
    pairs = experts(3)
    setting = Setting(router=built_for, subtract=(), combine="outputs")
    weights = replace(build(pairs, [], setting, dtype=dtype), router=Ramp(3))
    x = torch.randn(6, 16).to(dtype)
    update = sum(
        share * dense(pair) for share, pair in zip((1 / 6, 2 / 6, 3 / 6), pairs, strict=True)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(routed_update(x, weights)[0], x.double() @ update.T) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seam_takes_a_router_that_reads_scores(dtype: torch.dtype) -> None:
    pairs = experts(3)
    setting = Setting(subtract=(), combine="outputs", top_k=1)
    weights = replace(build(pairs, [], setting, dtype=dtype), router=ByFirstInput())
    x = torch.randn(6, 16).to(dtype)
    update, shares = routed_update(x, weights)
    assert set(shares.flatten().tolist()) <= {0.0, 1.0}
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for t in range(6):
        chosen = pairs[int(shares[t].argmax())]
        assert relative_error(update[t], dense(chosen) @ x[t].double()) < tolerance


@dataclass(frozen=True)
class Doubled:
    """Shares that sum to 2."""

    experts: int

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        return 2 * Ramp(self.experts).coefficients(tokens)


@router(paper="a test", sums_to_one=False)
def doubled(layer: Layer, parameters: Parameters) -> Prepared:
    """Shares that sum to 2."""
    return Prepared(Doubled(len(layer.residuals)))


@pytest.mark.parametrize("combine", ["outputs", "factors"])
def test_shares_that_do_not_sum_to_one_scale_what_is_subtracted(combine: Any) -> None:
    """With outputs twice the general part, with factors, which are both doubled, four times."""
    pairs, parts = experts(3), general()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    with ROUTERS.lent(doubled):
        setting = Setting(router="doubled", rule="delta", combine=combine)
        found, _ = routed_update(x, build(pairs, parts, setting, dtype=torch.float32))
        slow, _ = reference_update(x, pairs, parts, setting)
    shares = [1 / 3, 2 / 3, 1.0]
    if combine == "outputs":
        mixed = sum(c * dense(pair) for c, pair in zip(shares, pairs, strict=True))
        update = mixed - 2 * sum(map(dense, parts)) / 2
    else:
        A = sum(c * pair.A.double() for c, pair in zip(shares, pairs, strict=True))
        B = sum(c * pair.B.double() for c, pair in zip(shares, pairs, strict=True))
        update = 4.0 * B @ A - 4 * sum(map(dense, parts)) / 2
    assert relative_error(found, x.double() @ update.T) < 1e-5
    assert relative_error(slow, x.double() @ update.T) < 1e-5


def test_memory_is_that_of_the_tensors() -> None:
    weights = build(experts(4), general(2), SETTINGS["outputs"], dtype=torch.float32)
    # 4 prototypes and 6 adapters of rank 4 read 16 wide; the adapters write 24 wide; 16 numbers.
    assert weights.nbytes() == 4 * (4 + 24) * 16 + 4 * 24 * 24 + 8 * 16


@every_setting
def test_moving_to_a_device_keeps_everything(setting: Setting) -> None:
    pairs = experts()
    weights = build(pairs, [pairs[0]], setting, dtype=torch.bfloat16)
    moved = to_device(weights, torch.device("cpu"))
    x = torch.randn(3, 16).bfloat16()
    assert torch.equal(routed_update(x, weights)[0], routed_update(x, moved)[0])
    meta = to_device(weights, torch.device("meta"))
    tensors = meta.tensors()
    tensors += [value for value in vars(meta.router).values() if isinstance(value, torch.Tensor)]
    # Two factors, the row numbers, directions that are separate, and a tensor of the router.
    assert len(tensors) == (4 if setting.router == "uniform" else 5)
    assert all(tensor is None or tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize("tokens", [256, 257, 600])
def test_scores_of_16_bit_layers_are_the_same_in_parts(tokens: int) -> None:
    """Without gradients a CPU widens its activations a few at a time."""
    weights = build(experts(), general(), SETTINGS["outputs"], dtype=torch.bfloat16)
    assert weights.directions is not None
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    seen: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Watched:
        def coefficients(self, tokens: Tokens) -> torch.Tensor:
            seen.append(tokens.scores)
            return weights.router.coefficients(tokens)

    with torch.no_grad():
        routed_update(x, replace(weights, router=Watched()))
    expected = x.double() @ weights.directions.double().T
    assert seen[0].dtype == torch.float32
    assert relative_error(seen[0], expected) < 1e-6
