from __future__ import annotations

from typing import Any

import pytest
import torch
from common import load_tiny, tiny_config

from gks_eval.scoring import supports_packed
from gks_eval.scoring.masks import AttentionWindow
from gks_eval.scoring.tree_model import NotPackable, TreeModel

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def build(config_name: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, config_name)(**{**TINY, **changes})
    kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    return getattr(transformers, kind).from_config(config).eval()


@pytest.mark.parametrize("family", ["phi3", "phi", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_families_of_the_paper_are_supported(tiny_base, family, dtype):
    assert supports_packed(load_tiny(tiny_base(family), dtype=dtype)) is None


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        ("BloomConfig", {}, "position_ids"),
        ("FalconConfig", {"alibi": True}, "ALiBi"),
        (
            "GPTNeoConfig",
            {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2},
            "local",
        ),
        ("MambaConfig", {}, "position_ids"),
        ("Qwen3NextConfig", {"num_hidden_layers": 4}, "linear_attention"),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "conv"),
        (
            "BartConfig",
            {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
            "encoder-decoder",
        ),
        (
            "Gemma2Config",
            {"head_dim": 8, "layer_types": ["full_attention"] * 2, "sliding_window": 8},
            "no layer to use it",
        ),
        ("LlamaConfig", {"rope_parameters": DYNAMIC}, "longest text"),
    ],
)
def test_models_that_cannot_say_why(config, changes, reason):
    why = supports_packed(build(config, **changes), max_length=100)
    assert why is not None
    assert reason in why
    assert not why.endswith(".")


def test_what_only_long_texts_meet_does_not_matter_to_short_ones():
    assert supports_packed(build("LlamaConfig", rope_parameters=DYNAMIC), max_length=64) is None


def test_other_attention_is_refused(tiny_base):
    model = load_tiny(tiny_base("llama"))
    model.config._attn_implementation = "flex_attention"
    assert "flex_attention" in str(supports_packed(model))


def test_a_module_of_another_make_is_refused():
    assert "are not separate modules" in str(supports_packed(torch.nn.Linear(2, 2)))


def test_virtual_tokens_are_refused(tiny_base):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(load_tiny(tiny_base("llama")), config).eval()
    assert "virtual tokens" in str(supports_packed(model))


def drop_mask(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"] = None


def drop_positions(arguments: dict[str, Any]) -> None:
    arguments["position_ids"] = None


def refuse(arguments: dict[str, Any]) -> None:
    raise TypeError("no such mask")


def spoil_prefix(arguments: dict[str, Any]) -> None:
    cache = arguments.get("cache", arguments.get("past_key_values"))
    if cache is not None and arguments["attention_mask"] is not None:
        for layer in cache.layers:
            layer.keys = layer.keys.flip(2)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (drop_mask, "off by"),
        (drop_positions, "off by"),
        (spoil_prefix, "off by"),
        (refuse, "TypeError: no such mask"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_finds_what_a_configuration_does_not_say(monkeypatch, fault, reason, dtype):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config("llama", initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    call = TreeModel._call

    def faulty(tree: TreeModel, **arguments: Any) -> torch.Tensor:
        fault(arguments)
        return call(tree, **arguments)

    monkeypatch.setattr(TreeModel, "_call", faulty)
    assert reason in str(supports_packed(model))


def test_the_trial_runs_once_a_model(monkeypatch, tiny_base):
    model = load_tiny(tiny_base("llama"))
    calls = []
    call = TreeModel._call

    def counted(tree: TreeModel, **arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return call(tree, **arguments)

    monkeypatch.setattr(TreeModel, "_call", counted)
    assert supports_packed(model) is None
    first = len(calls)
    assert supports_packed(model, "cpu", 100) is None
    assert len(calls) == first > 0


def test_a_head_with_more_than_a_product_is_found_out(tiny_base, monkeypatch):
    model = load_tiny(tiny_base("llama"))
    forward = type(model).forward

    def hotter(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = 3 * output.logits
        return output

    monkeypatch.setattr(type(model), "forward", hotter)
    assert "off by" in str(supports_packed(model))


@pytest.mark.parametrize(
    ("config", "changes", "windows"),
    [
        ("LlamaConfig", {}, {"": AttentionWindow()}),
        ("MistralConfig", {"sliding_window": 9}, {"": AttentionWindow(size=9)}),
        ("Qwen2Config", {}, {"full_attention": AttentionWindow()}),
        (
            "Gemma2Config",
            {"head_dim": 8, "sliding_window": 9},
            {"full_attention": AttentionWindow(), "sliding_attention": AttentionWindow(size=9)},
        ),
    ],
)
def test_the_layers_attend_as_the_configuration_says(config, changes, windows):
    assert TreeModel(build(config, **changes), torch.device("cpu"), 64).windows == windows


def test_a_reason_is_not_an_error_of_the_package():
    from gks_eval.errors import GksError

    assert not issubclass(NotPackable, GksError)
