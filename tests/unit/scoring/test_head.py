from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import WIDE, Launches, fake_cuda
from torch import nn

from gks_eval.scoring import head as head_module
from gks_eval.scoring.head import Head

POSITIONS, HIDDEN, VOCABULARY, SCORED = 17, 24, 301, 40


def reference(linear: nn.Linear, hidden: torch.Tensor, **config: float) -> torch.Tensor:
    """Log-probabilities by the definition, in float64."""
    logits = hidden.double() @ linear.weight.double().T
    if linear.bias is not None:
        logits = logits + linear.bias.double()
    logits = logits * config.get("logit_scale", 1.0) / config.get("logits_scaling", 1.0)
    if cap := config.get("final_logit_softcapping"):
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "config",
    [{}, {"final_logit_softcapping": 5.0}, {"logit_scale": 0.25}, {"logits_scaling": 8.0}],
    ids=["plain", "cap", "scale", "divisor"],
)
@pytest.mark.parametrize("chunk_bytes", [1, 5000, 1 << 30])
def test_log_probs_are_those_of_float64(monkeypatch, dtype, bias, config, chunk_bytes):
    monkeypatch.setitem(head_module.CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setattr(head_module, "BLOCK_ROWS", 100)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(False)
    hidden = (8 * torch.randn(POSITIONS, HIDDEN)).to(dtype)
    position = torch.randint(POSITIONS, (SCORED,))
    token = torch.randint(VOCABULARY, (SCORED,))
    expected = reference(linear, hidden, **config)
    token[::3] = expected.argmax(dim=-1)[position[::3]]
    before = linear.weight.clone(), hidden.clone()
    found, greedy = Head(linear, SimpleNamespace(**config)).log_probs(hidden, position, token)
    # Also in 16 bits: the weights are rounded, the arithmetic is not.
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected[position, token], atol=2e-5, rtol=1e-5)
    assert torch.equal(greedy, expected.argmax(dim=-1)[position] == token)
    assert torch.equal(linear.weight, before[0])
    assert torch.equal(hidden, before[1])


def test_a_head_that_is_no_plain_layer_is_called():
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return 2 * super().forward(x)

    linear = Doubled(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    hidden = torch.randn(POSITIONS, HIDDEN)
    position, token = torch.arange(POSITIONS), torch.randint(VOCABULARY, (POSITIONS,))
    found, _ = Head(linear, SimpleNamespace()).log_probs(hidden, position, token)
    expected = reference(linear, 2 * hidden)[position, token]
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


def test_the_first_of_equal_logits_is_the_first_choice():
    linear = nn.Linear(2, 4, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    _, greedy = Head(linear, SimpleNamespace()).log_probs(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([1, 2])
    )
    assert greedy.tolist() == [True, False]


def test_autocast_outside_leaves_the_head_in_float32():
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    hidden = torch.randn(POSITIONS, HIDDEN)
    position, token = torch.arange(POSITIONS), torch.randint(VOCABULARY, (POSITIONS,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = Head(linear, SimpleNamespace()).log_probs(hidden, position, token)
    expected = reference(linear, hidden)[position, token]
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


def test_nothing_is_kept_for_gradients() -> None:
    head = Head(torch.nn.Linear(8, 32), SimpleNamespace())
    found, _ = head.log_probs(torch.randn(5, 8), torch.arange(5), torch.arange(5))
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_scores_without_waiting(dtype):
    """One product, float32 logits; nothing that the GPU would have to be asked for."""
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=True)
    with fake_cuda(), torch.no_grad():
        there = {"dtype": dtype, "device": "cuda:0"}
        linear.weight = nn.Parameter(torch.empty(VOCABULARY, HIDDEN, **there))
        linear.bias = nn.Parameter(torch.empty(VOCABULARY, **there))
        head = Head(linear, SimpleNamespace(final_logit_softcapping=5.0))
        hidden = torch.empty(POSITIONS, HIDDEN, **there)
        row = torch.zeros(SCORED, dtype=torch.long, device="cuda:0")
        with Launches() as launches:
            logits = head._logits(hidden)
            found, greedy = head_module._log_softmax_at(logits, row, row)
    assert (logits.dtype, found.dtype, greedy.dtype) == (torch.float32, torch.float32, torch.bool)
    assert found.device == greedy.device == torch.device("cuda:0")
    assert launches.operators["mm"] == 1 or not WIDE
