"""bitsandbytes' 4-bit layers keep their weights and gradients, on CPUs with AVX512-BF16 as well.

There the first forward in evaluation mode would repack the weights in place; on other CPUs these
tests hold trivially.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import TARGETS, relative_error
from torch import nn

from gks_eval.errors import CompatibilityError
from gks_eval.library.load import load_library
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.quantized import compute_dtype, is_quantized, keep_portable_layout


def nf4(**changes: Any) -> Any:
    from transformers import BitsAndBytesConfig

    fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return BitsAndBytesConfig(**fields, bnb_4bit_compute_dtype=torch.float32, **changes)


def dequantized(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that the 4-bit layers stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    return {
        name: dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, Linear4bit)
    }


def full_precision_twin(model: nn.Module, fresh: nn.Module) -> nn.Module:
    """Return `fresh`, a plain copy of the base, with the weights that `model` stands for."""
    with torch.no_grad():
        for name, weight in dequantized(model).items():
            fresh.get_submodule(name).weight.copy_(weight)
    return fresh


@pytest.mark.parametrize("family", ["phi3", "llama"])
@pytest.mark.parametrize("double", [False, True])
def test_weights_and_gradients_survive_evaluation(
    family: str,
    double: bool,
    tiny_model: Callable[..., Any],
    tiny_library: Callable[..., Path],
) -> None:
    from peft import LoraConfig, get_peft_model

    library = load_library(str(tiny_library(family)))
    model = tiny_model(family, quantization_config=nf4(bnb_4bit_use_double_quant=double))
    before = dequantized(model)
    assert len(before) == {"phi3": 8, "llama": 14}[family]
    tokens = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(1))
    twin = full_precision_twin(model, tiny_model(family))
    setting = Setting(rule="delta", combine="outputs")
    with torch.no_grad():
        with attach(model, library, setting):
            routed = model(tokens).logits
        with attach(twin, library, setting):
            expected = twin(tokens).logits
    assert relative_error(routed, expected) < 1e-4
    for name, weight in dequantized(model).items():
        assert torch.equal(weight, before[name])

    gradients = []
    for base in (model, twin):
        torch.manual_seed(3)
        lora = LoraConfig(r=2, target_modules=list(TARGETS[family]), init_lora_weights=False)
        adapted = get_peft_model(base, lora)
        adapted(tokens, labels=tokens).loss.backward()
        gradients.append(
            {n: p.grad for n, p in adapted.named_parameters() if p.grad is not None and "lora" in n}
        )
    found, expected_gradients = gradients
    assert set(found) == set(expected_gradients)
    assert found
    for name, gradient in expected_gradients.items():
        assert relative_error(found[name], gradient) < 1e-3, name


def test_gradients_reach_the_input_through_a_routed_4_bit_layer(
    tiny_model: Callable[..., Any], tiny_library: Callable[..., Path]
) -> None:
    library = load_library(str(tiny_library("phi3")))
    model = tiny_model("phi3", quantization_config=nf4())
    twin = full_precision_twin(model, tiny_model("phi3"))
    tokens = torch.randint(4, 260, (1, 6), generator=torch.Generator().manual_seed(2))
    gradients = []
    for base in (model, twin):
        with attach(base, library, Setting()):
            with torch.no_grad():
                base(tokens)  # the forward that would repack
            inputs = base.get_input_embeddings()(tokens).detach().requires_grad_()
            base(inputs_embeds=inputs).logits.square().mean().backward()
        gradients.append(inputs.grad)
    assert relative_error(gradients[0], gradients[1]) < 1e-3


def test_weights_that_were_repacked_already_are_refused(
    tiny_model: Callable[..., Any], tiny_library: Callable[..., Path]
) -> None:
    library = load_library(str(tiny_library("phi3")))
    model = tiny_model("phi3", quantization_config=nf4())
    layer = model.model.layers[1].self_attn.o_proj
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(CompatibilityError, match=r"layers\.1\.self_attn\.o_proj.*load .* again"):
        attach(model, library, Setting())
    assert not any(m._forward_hooks for m in model.modules())


def test_on_this_cpu_a_forward_before_attaching_is_refused_or_harmless(
    tiny_model: Callable[..., Any], tiny_library: Callable[..., Path]
) -> None:
    from bitsandbytes.functional import has_avx512bf16

    library = load_library(str(tiny_library("phi3")))
    model = tiny_model("phi3", quantization_config=nf4())
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    if has_avx512bf16():
        with pytest.raises(CompatibilityError, match="repacked"):
            attach(model, library, Setting())
    else:
        attach(model, library, Setting()).detach()


def test_keep_portable_layout_leaves_plain_layers_alone() -> None:
    layer = nn.Linear(4, 4)
    before = dict(layer.__dict__)
    keep_portable_layout(nn.Sequential(layer))
    assert layer.__dict__.keys() == before.keys()


def test_what_counts_as_quantized(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("phi3", quantization_config=nf4())
    packed = model.model.layers[0].self_attn.qkv_proj
    assert is_quantized(packed)
    assert compute_dtype(packed, model) == torch.float32
    assert not is_quantized(model.lm_head)
    assert not is_quantized(nn.ReLU())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = nn.Linear(4, 4, dtype=dtype)
        assert not is_quantized(plain)
        assert compute_dtype(plain, plain) == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_layer_computes_in_the_models_type(
    dtype: torch.dtype, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("phi3", dtype=dtype, quantization_config=nf4())
    packed = model.model.layers[0].self_attn.qkv_proj
    assert packed.weight.dtype == torch.uint8
    assert compute_dtype(packed, model) == dtype
