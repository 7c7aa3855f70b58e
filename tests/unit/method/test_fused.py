"""The Triton kernel against the separate operators: run by Triton's interpreter, and compiled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from common import random_pair

from gks_eval.method.build import build
from gks_eval.method.choice import Choice
from gks_eval.method.mixing import fused
from gks_eval.method.routed import add_update
from gks_eval.method.routers.top_k import TINY, top_k_softmax
from gks_eval.method.setting import Setting

pytestmark = pytest.mark.skipif(not fused.has_triton(), reason="Triton is not installed")

SCALES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "same": lambda raw: raw,
    "magnitude": torch.abs,
    "root": lambda raw: raw.clamp_min(TINY).sqrt(),
}


@contextmanager
def kernel(*, interpreted: bool) -> Iterator[ModuleType]:
    """Load the kernel's file with a Triton of its own.

    Decorators, also those in Triton itself, read once whether to interpret or compile.
    """
    before = {name: module for name, module in sys.modules.items() if is_triton(name)}
    for name in before:
        del sys.modules[name]
    file = Path(fused.__file__).with_name("kernel.py")
    spec = importlib.util.spec_from_file_location("kernel_under_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
            spec.loader.exec_module(module)
            yield module
    finally:
        for name in [name for name in sys.modules if is_triton(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def is_triton(name: str) -> bool:
    # An extension module cannot be loaded twice.
    return name.partition(".")[0] == "triton" and not name.startswith("triton._C")


# From what the kernel computes and then drops: coefficients of experts that are not chosen, and of
# numbers above the last expert's.
overflow = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    with kernel(interpreted=True) as module:
        yield module


CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "one expert": {"experts": 1, "top_k": 1},
    "all of them": {"top_k": 10, "temperature": 0.5},
    "all, factors": {"top_k": 10, "factors": True, "general": 4, "dead": True},
    "factors": {"factors": True, "general": 3, "dead": True, "present": True, "parts": 3},
    "three parts": {"parts": 3, "unscale": True, "general": 4, "dead": True, "present": True},
    "unequal ranks": {"ranks": [1, 4, 2, 8, 3, 3], "general": 2, "present": True},
    "equal shares": {"temperature": float("inf"), "scale": "root"},
    "cold": {"temperature": 1e-30},
    "colder than float32": {"temperature": 1e-50},
    "far below zero": {"scale": "same", "lowered": 300.0},
    "far below zero, factors": {"scale": "same", "lowered": 300.0, "factors": True, "top_k": 10},
    "signed": {"scale": "same", "dead": True, "top_k": 4},
    "many": {"experts": 1000, "rank": 2, "tokens": 2},
    "most": {"experts": 4096, "rank": 1, "tokens": 1, "top_k": 5},
    "wide factors": {"experts": 150, "rank": 5, "factors": True, "tokens": 2, "top_k": 20},
    "rank above a tile": {"experts": 2, "rank": 1100, "factors": True, "tokens": 1, "top_k": 1},
    "bfloat16": {"dtype": torch.bfloat16, "general": 4},
}


@overflow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_the_separate_operators(interpreted: ModuleType, case: dict[str, Any]) -> None:
    check(interpreted, **case)


def check(
    module: ModuleType,
    *,
    tokens: int = 4,
    experts: int = 10,
    rank: int = 4,
    ranks: list[int] | None = None,
    general: int = 0,
    top_k: int = 3,
    parts: int = 1,
    temperature: float = 1.0,
    scale: str = "magnitude",
    lowered: float = 0.0,
    factors: bool = False,
    dead: bool = False,
    unscale: bool = False,
    present: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    sizes = ranks or [rank] * experts
    experts, stacked = len(sizes), sum(sizes)
    generator = torch.Generator().manual_seed(experts + top_k)
    read = torch.randn(tokens, stacked + general + parts * experts, generator=generator)
    read[:, stacked + general :] -= lowered
    inner, raw = read[:, : stacked + general], read[:, stacked + general :]
    gone = torch.rand(experts, generator=generator) < 0.4 if dead else None
    units = 2.0 ** torch.randint(-3, 3, (experts,), generator=generator) if unscale else None
    there = (torch.rand(experts, generator=generator) < 0.6).float() if present else None
    owner = torch.arange(experts).repeat_interleave(torch.tensor(sizes))
    results = (
        torch.full_like(inner, torch.nan, dtype=dtype),
        torch.full((tokens, top_k), -1),
        torch.full((tokens, top_k), torch.nan),
    )
    module.launch(
        raw, inner, owner if ranks else None, gone, units, there, experts, stacked,
        0 if ranks else rank, factors, parts, fused.SCALES.index(scale), temperature, results,
    )  # fmt: skip
    scores = raw.unflatten(1, (parts, experts)).sum(1)
    scores = SCALES[scale](scores if units is None else scores * units)
    c = top_k_softmax(scores, top_k, temperature, gone)
    z = inner[:, :stacked]
    if factors:
        z = (c[:, :, None] * z.view(tokens, experts, rank)).sum(1).repeat(1, experts)
    once = inner[:, stacked:] if there is None else (c @ there)[:, None] * inner[:, stacked:]
    expected = torch.cat([c[:, owner] * z, once], dim=1)
    close = (
        {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    )
    torch.testing.assert_close(results[0].float(), expected, **close)
    dense = torch.zeros_like(c).scatter_(1, results[1], results[2])
    torch.testing.assert_close(dense, c, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == top_k for row in results[1].tolist())


SETTINGS = [
    "arrow:en", "arrow:en;rule=delta;top_k=-1", "arrow:en;combine=outputs;rule=delta;temperature=0",
    "spectr:en;weights=equal", "norm:en;rule=delta;combine=outputs", "arrow:en;input_norm=layer",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", SETTINGS)
def test_a_layer_gets_the_same_update(
    monkeypatch: pytest.MonkeyPatch, interpreted: ModuleType, text: str, dtype: torch.dtype
) -> None:
    experts = [random_pair(width_in=32, width_out=24, seed=n) for n in range(5)]
    general = [random_pair(width_in=32, width_out=24, seed=50)]
    layer = build(experts, general, Setting.parse(text)[0], dtype=dtype)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    monkeypatch.setitem(sys.modules, "gks_eval.method.mixing.kernel", interpreted)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with torch.no_grad(), torch.library._scoped_library("gks_eval", "IMPL") as library:
        library.impl("mix", fused._launch, "CPU")
        found, choice = add_update(x, layer, plan="fused")
        expected, share = add_update(x, layer, plan="all")
    assert isinstance(choice, Choice)
    assert isinstance(share, torch.Tensor)
    torch.testing.assert_close(choice.dense(5), share.expand(6, -1), rtol=1e-5, atol=1e-6)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found.float(), expected.float(), **close)


def mixed(module: ModuleType, scores: list[float], top_k: int, dead: list[int] = []) -> Any:  # noqa: B006
    """Return the chosen experts and their shares, from signed scores of one token."""
    experts = len(scores)
    gone = torch.tensor([e in dead for e in range(experts)])
    inner = torch.ones(1, experts)
    results = (
        torch.empty(1, experts),
        torch.empty(1, top_k, dtype=torch.int64),
        torch.empty(1, top_k),
    )
    module.launch(
        torch.tensor([scores]), inner, None, gone if dead else None, None, None, experts, experts,
        1, False, 1, 0, 1.0, results,
    )  # fmt: skip
    share = torch.zeros(1, experts).scatter_(1, results[1], results[2])
    torch.testing.assert_close(results[0], share, equal_nan=True)
    return results[1][0].tolist(), results[2][0].tolist()


@overflow
def test_ties_nan_and_dead_experts(interpreted: ModuleType) -> None:
    module = interpreted
    # Of equal scores the lower number, each expert once.
    assert mixed(module, [1.0, 2.0, 2.0, 2.0, 0.0], 2)[0] == [1, 2]
    assert mixed(module, [0.0] * 5, 3) == ([0, 1, 2], pytest.approx([1 / 3] * 3))
    # NaN is the largest number, as in torch.topk, and makes all shares NaN.
    chosen, shares = mixed(module, [1.0, float("nan"), 3.0, 2.0], 2)
    assert chosen == [1, 2]
    assert all(share != share for share in shares)
    # Dead experts come last, even below negative scores, and keep their own score.
    chosen, shares = mixed(module, [0.0, -5.0, 0.0, -7.0], 3, dead=[0, 2])
    assert chosen == [1, 3, 0]
    expected = torch.softmax(torch.tensor([-5.0, -7.0, 0.0]), 0).tolist()
    assert shares == pytest.approx(expected, rel=1e-5)
    # Below scores of any size, and no matter how much larger their own score is.
    chosen, shares = mixed(module, [0.0, -5e35, 0.0, -6e35, 0.0], 2, dead=[0, 2, 4])
    assert (chosen, shares) == ([1, 3], [1.0, 0.0])
    assert mixed(module, [0.0, -500.0, 0.0, -500.0], 2, dead=[0, 2]) == ([1, 3], [0.5, 0.5])
    # A score of minus infinity is one more score, and each expert is chosen once.
    low = -float("inf")
    chosen, shares = mixed(module, [low, 1.0, low, low, low], 3)
    assert (chosen, shares) == ([1, 0, 2], [1.0, 0.0, 0.0])


def test_roots_of_the_smallest_squares(interpreted: ModuleType) -> None:
    """Squares below the smallest normal number, 2^-126, count as that; temperature 2^-62."""
    squares = [0.0, 2.0**-124, 2.0**-122]
    results = (torch.empty(1, 3), torch.empty(1, 3, dtype=torch.int64), torch.empty(1, 3))
    interpreted.launch(
        torch.tensor([squares]), torch.ones(1, 3), None, None, None, None, 3, 3, 1, False, 1,
        fused.SCALES.index("root"), 2.0**-62, results,
    )  # fmt: skip
    expected = torch.softmax(torch.tensor([0.5, 1.0, 2.0]), 0)
    torch.testing.assert_close(results[2][0], expected)
    torch.testing.assert_close(results[0][0], expected)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
def test_it_compiles_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not, such as names that change their type."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with kernel(interpreted=False) as module:
        for capability, factors in ((80, True), (90, False)):
            compile_for(module.mix, capability, factors)


def compile_for(function: Any, capability: int, factors: bool) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    pointers = {
        "owner": "*i64", "dead": "*i1", "mixed": "*bf16", "chosen": "*i64", "scores": "*fp32",
        "inner": "*fp32", "unscale": "*fp32", "present": "*fp32", "shares": "*fp32",
    }  # fmt: skip
    constants = {
        "TOP_K": 3, "SOME": True, "PARTS": 3, "SCALE": 1 + factors, "DEAD": True, "UNSCALE": True,
        "PRESENT": True, "RANKS": 4 * factors, "FACTORS": factors, "LANES": 16, "BLOCK": 64,
        "TILE_E": 16, "TILE_R": 4,
    }  # fmt: skip
    kinds = {"temperature": "fp32"} | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        function, {name: kinds.get(name, "i32") for name in function.arg_names}, constants
    )
    built = compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 1})
    assert len(built.asm["cubin"]) > 1000
