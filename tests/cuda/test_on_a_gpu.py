"""Tests for a GPU: numbers, the Triton kernel, captured graphs, 4-bit layers, two GPUs.

`make cuda` runs this file and the benchmark of the full size. Without a GPU, all tests except that
of two GPUs run on the CPU, without capturing graphs, so that mistakes in the tests are found early.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import random_pair
from one_by_one import one_by_one

from benchmarks.capture import captured, static_decode
from gks_eval.library.load import load_library
from gks_eval.method.build import build
from gks_eval.method.choice import Choice
from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.reference import reference_update
from gks_eval.method.routed import add_update
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.scoring import packed_log_likelihoods

GPUS = torch.cuda.device_count()
gpu = pytest.mark.skipif(not GPUS, reason="no GPU")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="fewer than two GPUs")
DEVICES = [pytest.param("cpu", id="dry run"), pytest.param("cuda", marks=[gpu, pytest.mark.cuda])]
TYPES = (torch.float32, torch.bfloat16, torch.float16)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
SETTINGS = (
    "arrow:en",
    "arrow:en;rule=delta;combine=outputs",
    "arrow:en;top_k=-1;temperature=0",
    "arrow:en;input_norm=layer",
    "spectr:en",
    "norm:en;combine=outputs",
    "lag:en;shortlist=4",
    "uniform:en;rule=delta",
)
K, D, T = 256, 384, 200
pytestmark = pytest.mark.filterwarnings("default")


def pairs() -> tuple[list[Any], list[Any]]:
    experts = [random_pair(width_in=K, width_out=D, seed=n) for n in range(8)]
    return experts, [random_pair(width_in=K, width_out=D, seed=90)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_updates_are_those_of_float64(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(3)).to(dtype)
    experts, general = pairs()
    for text in SETTINGS:
        setting = Setting.parse(text)[0]
        layer = build(experts, general, setting, dtype=dtype, device=device)
        with torch.no_grad():
            update, found = add_update(x.to(device), layer)
        share = found.dense(len(experts)) if isinstance(found, Choice) else found
        expected, coefficients = reference_update(x, experts, general, setting)
        same = (share.expand(T, -1).cpu() > 0).eq(coefficients > 0).all(dim=1)
        # Scores of spectr, norm and lag come from rounded inner activations in 16-bit layers.
        least = 1.0 if dtype == torch.float32 or "arrow" in text or "uniform" in text else 0.9
        assert same.double().mean() >= least, text
        gap = (update.cpu().double() - expected)[same].abs().max() / expected.abs().max()
        assert gap < CLOSE[dtype], text


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_is_the_separate_operators(device: str, dtype: torch.dtype) -> None:
    experts, general = pairs()
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(4)).to(device, dtype)
    for text in SETTINGS:
        layer = build(experts, general, Setting.parse(text)[0], dtype=dtype, device=device)
        with torch.no_grad():
            update, found = add_update(x, layer)
            expected, share = add_update(x, layer, plan="all")
        assert isinstance(share, torch.Tensor)
        dense = found.dense(len(experts)) if isinstance(found, Choice) else found
        same = (dense - share).abs().amax(dim=1) < 1e-4
        assert same.double().mean() > 0.98, text
        off = (update - expected)[same.expand(T)].abs().max() / expected.abs().max()
        assert off < CLOSE[dtype], text


@pytest.mark.parametrize("device", DEVICES)
def test_a_4_bit_layer(device: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    experts, general = pairs()
    layer = bitsandbytes.nn.Linear4bit(
        K, D, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    layer.to(device).eval()
    if device == "cpu":
        layer.support_avx512bf16_for_cpu = False
    setting = Setting.parse("arrow:en")[0]
    hook = RoutedUpdate(layer, "l")
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    with torch.no_grad():
        base = layer(x.to(device))
        hook.weights = build(experts, general, setting, dtype=torch.bfloat16, device=device)
        routed = layer(x.to(device))
    expected, _ = reference_update(x, experts, general, setting)
    off = (routed.cpu().double() - base.cpu().double() - expected).abs().max()
    assert off < 3e-2 * (expected.abs().max() + base.abs().max().cpu())


REQUESTS = [
    (list(range(3, 3 + context)), [100 + choice, *range(20, 20 + tokens)])
    for context in (4, 30, 60)
    for choice in range(4)
    for tokens in (1, 5)
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_scores_are_those_of_one_by_one(
    device: str,
    dtype: torch.dtype,
    tiny_model: Callable[..., Any],
    tiny_library: Callable[..., Path],
) -> None:
    library = load_library(str(tiny_library("phi3")))
    for text in ("arrow:en", "arrow:en;level=sequence"):
        setting, reference = Setting.parse(text)[0], tiny_model("phi3", dtype=dtype)
        with torch.no_grad(), attach(reference, library, setting):
            if setting.by_context:
                expected = packed_log_likelihoods(reference, REQUESTS, device="cpu", max_length=128)
            else:
                expected = one_by_one(reference, REQUESTS, 128)
        model = tiny_model("phi3", dtype=dtype).to(device)
        with torch.no_grad(), attach(model, library, setting):
            found = packed_log_likelihoods(model, REQUESTS, device=device, max_length=128)
        gaps = sorted(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True))
        if dtype == torch.float32:
            assert gaps[-1] < 1e-3, text
        else:  # rounding moves some tokens to other experts
            assert gaps[len(gaps) // 2] < 0.1, text
            assert gaps[-1] < 1.0, text


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_captured_decoding_gives_the_same_states(
    device: str,
    dtype: torch.dtype,
    tiny_model: Callable[..., Any],
    tiny_library: Callable[..., Path],
) -> None:
    model = tiny_model("phi3", dtype=dtype).to(device)
    library = load_library(str(tiny_library("phi3")))
    ids = torch.arange(10, 22, device=device)[None]
    with torch.no_grad(), attach(model, library, Setting.parse("arrow:en")[0]):
        plain = static_decode(model.model, ids)
        expected = plain().clone()  # type: ignore[attr-defined]
        replay = captured(static_decode(model.model, ids), device)
        for _ in range(3):
            found = replay()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@two_gpus
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_model_on_two_gpus(
    dtype: torch.dtype, tiny_base: Callable[[str], Path], tiny_library: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    places = {
        "model.embed_tokens": 0, "model.layers.0": 0, "model.rotary_emb": 0,
        "model.layers.1": 1, "model.norm": 1, "lm_head": 1,
    }  # fmt: skip
    folder = str(tiny_base("phi3"))
    library = load_library(str(tiny_library("phi3")))
    scores = []
    for device_map in ({"": 0}, places):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
        with torch.no_grad(), attach(model.eval(), library, Setting.parse("arrow:en")[0]):
            scores.append(packed_log_likelihoods(model, REQUESTS, device="cuda:0", max_length=128))
    for one, other in zip(*scores, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3)
