"""The packed scorer against one request at a time, on tiny random models of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from one_by_one import one_by_one, random_requests

from gks_eval.scoring import packed_log_likelihoods, supports_packed

VOCABULARY = 211
SEEDS = st.integers(0, 2**32 - 1)
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    "original_max_position_embeddings": 40,
}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_OF_8 = {"head_dim": 8}
# Windows of a few tokens, far shorter than the rows.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {}),
    "phi3 window": ("Phi3Config", {"sliding_window": 17}),
    "mistral window": ("MistralConfig", {"sliding_window": 13}),
    "qwen2 mixed": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen2 all windowed": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
    ),
    "gemma2 mixed": ("Gemma2Config", {"sliding_window": 9, **HEADS_OF_8}),
    "gemma3 mixed": (
        "Gemma3TextConfig",
        {"sliding_window": 9, "sliding_window_pattern": 2, **HEADS_OF_8},
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "experts": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
# Rows unpadded, the same rows padded (as on a GPU), and the padded rows of eager attention.
ATTENTIONS = ("sdpa", "padded", "eager")


@pytest.fixture(autouse=True)
def rows_as_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = getattr(getattr(request.node, "callspec", None), "params", {})
    if arguments.get("attention") == "padded":
        monkeypatch.setattr("gks_eval.scoring.tree_model.UNPADDED_ON", set())


def make(kind: str, attention: str = "sdpa", seed: int = 0) -> Any:
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, name)(**{**SMALL, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(attention.replace("padded", "sdpa"))
    return model.eval()


def assert_equal_scores(
    model: Any, requests: Any, max_length: int, bound: float = 1e-4, **sizes: int
) -> None:
    found = packed_log_likelihoods(model, requests, device="cpu", max_length=max_length, **sizes)
    expected = one_by_one(model, requests, max_length)
    assert [(greedy, one.tokens) for one in found for greedy in one[1:]] == [
        (greedy, tokens) for _, greedy, tokens in expected
    ]
    worst = max(abs(one[0] - score) for one, (score, _, _) in zip(found, expected, strict=True))
    assert worst <= bound


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, by) for kind in KINDS for by in ATTENTIONS if by == "eager" or kind != "gemma2 mixed"],
)
def test_packed_equals_one_by_one(kind, attention):
    model = make(kind, attention)
    assert supports_packed(model, max_length=128) is None
    requests = random_requests(2, VOCABULARY)
    # Rows too short for the few-shot prefix, and truncation at 64 as well.
    assert_equal_scores(model, requests, 128, row_tokens=32, batch_tokens=128)
    assert_equal_scores(model, requests, 64, row_tokens=256, batch_tokens=512)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("few_shot", [10, 60], ids=["prefix-below", "prefix-beyond"])
def test_longrope_is_right_on_both_sides_of_its_bound(attention, few_shot):
    from transformers import AutoModelForCausalLM

    config = tiny_config(
        "phi3", rope_parameters=LONG_ROPE, original_max_position_embeddings=40, sliding_window=23
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.set_attn_implementation(attention.replace("padded", "sdpa"))
    requests = random_requests(3, 260, few_shot=few_shot)
    lengths = [len(context) + len(text) - 1 for context, text in requests]
    assert min(lengths) < 40 < max(lengths)
    edge = ([7] * 30, [8] * 11), ([7] * 30, [8] * 12)  # inputs of 40 and 41 tokens, 40 in common
    for row_tokens in (16, 64, 256):
        assert_equal_scores(
            model, [*requests, *edge], 128, row_tokens=row_tokens, batch_tokens=2 * row_tokens
        )


texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)
shorts = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["llama", "phi", "phi3 window", "gemma3 mixed"]),
    prefixes=st.lists(texts, min_size=1, max_size=4),
    choices=st.lists(
        st.tuples(st.integers(0, 3), st.one_of(shorts, shorts, texts)), min_size=1, max_size=30
    ),
    max_length=st.integers(40, 90),
    row_tokens=st.integers(1, 120),
    batch_tokens=st.integers(1, 400),
)
def test_any_tree_at_any_size(kind, prefixes, choices, max_length, row_tokens, batch_tokens):
    requests = [(prefixes[n % len(prefixes)], choice) for n, choice in choices]
    assert_equal_scores(
        make(kind), requests, max_length, row_tokens=row_tokens, batch_tokens=batch_tokens
    )


@settings(max_examples=4, deadline=None)
@given(SEEDS)
def test_scores_do_not_depend_on_order_or_sizes(seed):
    model, requests = make("phi3 window"), random_requests(seed, VOCABULARY)
    results = [
        packed_log_likelihoods(
            model, given_, device="cpu", max_length=128, row_tokens=row, batch_tokens=batch
        )
        for given_, row, batch in (
            (requests, 48, 192),
            (requests[::-1], 48, 192),
            (requests, 7, 7),
            (requests, 4096, 4096),
        )
    ]
    results[1].reverse()
    for other in results[1:]:
        assert max(abs(a[0] - b[0]) for a, b in zip(results[0], other, strict=True)) <= 1e-4
        assert [a[1] for a in results[0]] == [b[1] for b in other]


def test_continuations_of_one_and_of_500_tokens():
    model = make("phi3 window")
    long = [(7 * n + n // 13) % VOCABULARY for n in range(501)]
    requests = [
        ([3], long[:500]),
        ([3], long[:1]),
        (long[:10], [*long[10:], 1]),
        (long[:10], long[10:300]),  # within the one before
        (long[:400], [1]),
        (long[:400], [2]),
    ]
    assert_equal_scores(model, requests, 512, bound=1e-3)
    assert_equal_scores(model, requests, 512, bound=1e-3, row_tokens=64, batch_tokens=64)


def padded(model: Any, requests: Any) -> list[float]:
    """Log-likelihoods from one batch of all requests, padded on the right."""
    inputs = [context + text[:-1] for context, text in requests]
    width = max(map(len, inputs))
    with torch.no_grad():
        hidden = model.model(
            input_ids=torch.tensor([ids + [0] * (width - len(ids)) for ids in inputs]),
            use_cache=False,
        )[0]
        weight = model.get_output_embeddings().weight.double()
    scores = []
    for row, ids, (_, text) in zip(hidden, inputs, requests, strict=True):
        logits = row[len(ids) - len(text) : len(ids)].double() @ weight.T
        chosen = torch.tensor(text)[:, None]
        scores.append(float(torch.log_softmax(logits, -1).gather(1, chosen).sum()))
    return scores


@pytest.mark.parametrize("kind", ["llama", "phi3 window", "gemma3 mixed"])
def test_bfloat16_is_as_near_to_float32_as_padding_is(kind):
    model = make(kind).bfloat16()
    requests = random_requests(5, VOCABULARY, items=24)
    found = packed_log_likelihoods(
        model, requests, device="cpu", max_length=512, row_tokens=48, batch_tokens=192
    )
    by_padding = padded(model, requests)
    exact = torch.tensor([score for score, _, _ in one_by_one(model.float(), requests, 512)])

    def noise(scores: list[float]) -> float:
        return float((torch.tensor(scores) - exact).square().mean().sqrt())

    assert noise([one[0] for one in found]) <= 1.3 * noise(by_padding)


def test_adapters_on_the_model_take_part():
    from peft import LoraConfig, get_peft_model

    base = make("llama")
    requests = random_requests(6, VOCABULARY, items=4)
    plain = one_by_one(base, requests, 128)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    assert one_by_one(model, requests, 128) != plain
    assert_equal_scores(model, requests, 128, row_tokens=64, batch_tokens=128)
