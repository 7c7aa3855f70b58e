"""Whole routed models on CUDA tensors that hold nothing: token trees, and decoding for a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import WIDE, Launches, fake_cuda, need_static_cache
from torch import nn

from benchmarks.capture import static_decode
from gks_eval.library.load import load_library
from gks_eval.method.hook import updates_of
from gks_eval.method.mixing import fused
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.scoring.tree import build_row, to_sequences
from gks_eval.scoring.tree_model import TreeModel

CUDA = torch.device("cuda:0")
SEQUENCES = to_sequences(
    [(list(range(3, 12)), [20 + n, *range(30, 30 + n)]) for n in range(1, 4)], 64
)
CHAIN = to_sequences([(list(range(3, 12)), [5, 6, 7])], 64)


def to_fake_cuda(model: Any) -> Any:
    """Replace parameters and buffers by CUDA tensors that hold nothing; call within `fake_cuda`."""
    for module in model.modules():
        for name, parameter in [*module._parameters.items()]:
            if parameter is not None:
                there = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(there, requires_grad=False)
        for name, buffer in [*module._buffers.items()]:
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return model


@contextmanager
def refusals() -> Iterator[None]:
    """Make what a CUDA graph cannot hold raise."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this waits for the GPU")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("synchronize", "current_stream", "empty_cache"):
            patch.setattr(torch.cuda, name, refuse)
        for name in ("pin_memory", "item", "tolist", "numpy", "__bool__", "__float__", "cpu"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "has_triton", lambda: True)


@pytest.fixture(params=["phi3", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def routed(
    request: pytest.FixtureRequest,
    family: str,
    tiny_model: Callable[..., Any],
    tiny_library: Callable[..., Path],
) -> Callable[..., Any]:
    """Return ``routed(setting)``: a tiny model with a library, still on the CPU."""
    library = load_library(str(tiny_library(family)))

    def make(setting: str | None, **options: Any) -> Any:
        model = tiny_model(family, dtype=request.param, **options)
        if setting is not None:
            attach(model, library, Setting.parse(setting)[0])
        return model

    return make


@pytest.mark.parametrize("setting", ["arrow:en", "arrow:en;level=sequence"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_token_trees(routed: Callable[..., Any], setting: str, attention: str) -> None:
    model = routed(setting, attn_implementation=attention)
    with fake_cuda():
        to_fake_cuda(model)
        tree = TreeModel(model, CUDA, 64)
        assert not tree.unpadded
        for rows in ([build_row(SEQUENCES)], [build_row(CHAIN), build_row(CHAIN)]):
            with refusals():
                hidden, starts = tree.hidden(rows, [], long=False)
            assert (hidden.device, hidden.dtype, len(starts)) == (CUDA, tree.dtype, len(rows))
        if not tree.by_context:
            prefix = tree.prefill(SEQUENCES[0].tokens[:4], long=False)
            hidden, _ = tree.hidden([build_row(SEQUENCES, 4)], prefix, long=False)
            assert hidden.device == CUDA


def test_decoding_can_be_captured(routed: Callable[..., Any]) -> None:
    """No copy between host and GPU, no result that depends on values, few launches per layer."""
    need_static_cache()
    base, model = routed(None), routed("arrow:en")
    if model.dtype != torch.float32 and not WIDE:
        pytest.skip("this torch has no product into float32")
    layers = len(updates_of(model))
    counts = []
    with fake_cuda(), torch.no_grad():
        for one in (base, model):
            ids = torch.zeros(1, 9, dtype=torch.long, device=CUDA)
            call = static_decode(to_fake_cuda(one).model, ids)
            call()
            with refusals(), Launches() as launches:
                hidden = call()
            assert isinstance(hidden, torch.Tensor)
            assert hidden.device == CUDA
            counts.append(launches.count)
    assert counts[1] - counts[0] == 3 * layers
