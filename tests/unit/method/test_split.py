"""16-bit parts of float32 directions choose the experts that float32 chooses."""

from __future__ import annotations

import math

import pytest
import torch
from common import random_pair
from fake_cuda import WIDE

from gks_eval.method.build import build
from gks_eval.method.mixing.split import (
    PARTS,
    accumulates_wide,
    joined_rows,
    joined_scores,
    split,
)
from gks_eval.method.setting import Setting
from gks_eval.method.weights import suited

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


def emulated(x: torch.Tensor, directions: torch.Tensor, parts: int) -> torch.Tensor:
    """Return the scores of a device that multiplies 16 bits exactly and adds in float32."""
    rows, unscale = split(directions, x.dtype, parts)
    return joined_scores(x.float() @ rows.float().T, parts, unscale)


def chosen(scores: torch.Tensor) -> torch.Tensor:
    return scores.abs().topk(3, dim=1).indices.sort(dim=1).values


@pytest.mark.parametrize(
    ("dtype", "parts", "most"),
    # Of 50,000 tokens; float32 itself is off at one. Two parts of bfloat16 suffice nearly always.
    [(BFLOAT16, 1, 400), (BFLOAT16, 2, 4), (BFLOAT16, 3, 2), (FLOAT16, 1, 60), (FLOAT16, 2, 2)],
)
def test_only_near_ties_are_routed_otherwise(dtype: torch.dtype, parts: int, most: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50_000, 256, generator=generator)
    x[:, :4] *= 30  # a few large entries, as in language models
    x = x.to(dtype)
    directions = torch.nn.functional.normalize(torch.randn(12, 256, generator=generator), dim=1)
    exact = (x.double() @ directions.double().T).abs()
    best = exact.topk(4, dim=1).values
    gap = (best[:, 2] - best[:, 3]) / x.double().norm(dim=1)
    float32 = (chosen(x.float() @ directions.T) != chosen(exact)).any(dim=1)
    assert float32.sum() <= 2
    off = (chosen(emulated(x, directions, parts)) != chosen(exact)).any(dim=1)
    assert off.sum() <= most
    if parts == 1:
        assert off.sum() > 20  # the tokens are not easy
    if parts == PARTS[dtype] and off.any():
        assert gap[off].max() < 3e-7


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_parts_hold_a_float32(dtype: torch.dtype, size: float) -> None:
    directions = size * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    directions[1, 0] = (1 - 2**-24) * 2.0 ** math.ceil(math.log2(8 * size))  # rounds up
    directions[2] = -directions[2].abs()  # the largest entry is negative
    directions[3] = 0.0
    directions[4] *= torch.logspace(-9, 0, 300)
    directions[4, 0] = 2.0 ** math.ceil(math.log2(8 * size))
    rows, unscale = split(directions, dtype)
    assert rows.dtype == dtype
    assert rows.isfinite().all()
    sizes = rows.float().view(PARTS[dtype], 5, 300).norm(dim=2)
    assert (sizes[:-1] <= sizes[1:]).all()
    found = joined_rows(rows, PARTS[dtype], unscale)
    if dtype == BFLOAT16:
        assert unscale is None
        torch.testing.assert_close(found, directions, rtol=2**-24, atol=0.0)
    else:
        assert unscale is not None
        assert torch.equal(torch.frexp(unscale).mantissa, torch.full_like(unscale, 0.5))
        largest = directions.abs().amax(dim=1, keepdim=True)
        allowed = (2**-23 * directions.abs()).maximum(2**-39 * largest)
        assert ((found - directions).abs() <= allowed).all()


def test_a_cpu_and_float32_keep_whole_directions() -> None:
    assert not accumulates_wide(torch.device("cpu"), BFLOAT16)
    assert not accumulates_wide(torch.device("cuda"), torch.float32)


def test_rocm_keeps_whole_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, torch.cuda's devices are AMD's."""
    for dtype in (BFLOAT16, FLOAT16):
        with monkeypatch.context() as patch:
            patch.setattr(torch.version, "hip", None)
            assert accumulates_wide(torch.device("cuda"), dtype) == WIDE
            patch.setattr(torch.version, "hip", "6.4")
            assert not accumulates_wide(torch.device("cuda"), dtype)


def test_split_weights_give_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the emulated product, a 16-bit layer routes and updates as with whole directions."""
    experts = [random_pair(width_in=32, width_out=24, seed=n) for n in range(6)]
    setting = Setting.parse("arrow")[0]
    whole = build(experts, [], setting, dtype=BFLOAT16)

    from gks_eval.method import weights as weights_module
    from gks_eval.method.mixing import products
    from gks_eval.method.routed import routed_update

    def product(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.float() @ rows.float().T

    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "accumulates_wide", lambda *_: True)
        patch.setattr(products, "wide_mm", product)
        parts = suited(whole)
        assert parts.parts == 3
        assert parts.directions is None
        assert parts.read.shape[0] == whole.read.shape[0] + 3 * 6
        x = torch.randn(40, 32).to(BFLOAT16)
        with torch.no_grad():
            update, share = routed_update(x, parts)
            expected, expected_share = routed_update(x, whole)
    assert update.dtype == BFLOAT16
    torch.testing.assert_close(share, expected_share, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(update.float(), expected.float(), rtol=2e-2, atol=2e-2)
    # With gradients, and back on a device that needs whole directions.
    again, again_share = routed_update(x.requires_grad_(), parts)
    torch.testing.assert_close(again_share, expected_share, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(again.float().sum(), x)[0].isfinite().all()
    back = suited(parts)
    assert back.parts == 0
    assert torch.equal(back.read, whole.read)
    assert back.directions is not None
    assert whole.directions is not None
    torch.testing.assert_close(back.directions, whole.directions, rtol=2**-24, atol=0.0)
