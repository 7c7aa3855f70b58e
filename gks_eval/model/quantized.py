"""Quantised weights: how a model holds them, and a guard for bitsandbytes' linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gks_eval.errors import CompatibilityError

__all__ = [
    "compute_dtype",
    "four_bits",
    "is_quantized",
    "keep_portable_layout",
    "quantization_of",
    "saved_quantization",
]


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a linear layer holds packed weights."""
    return not layer.weight.dtype.is_floating_point if hasattr(layer, "weight") else False


def compute_dtype(layer: nn.Module, model: nn.Module) -> torch.dtype:
    """Return the dtype of the activations that `layer` receives.

    A plain layer computes in the dtype of its weight. A quantised one receives the dtype of the
    model's unquantised parts.
    """
    if not is_quantized(layer):
        dtype: torch.dtype = layer.weight.dtype  # type: ignore[assignment]
        return dtype
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(floating, torch.float32)


def keep_portable_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on a CPU.

    On CPUs with AVX512-BF16, the first forward in evaluation mode rewrites a Linear4bit's weights
    for a special kernel. Dequantising them, and gradients through them, are then silently wrong.
    With the flag off, every forward uses the portable kernel and the weights stay as loaded. Call
    this before the first forward.

    Raises:
        CompatibilityError: A forward has already repacked weights; bitsandbytes cannot undo that,
            because it rounds the scales to bfloat16.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise CompatibilityError(
                    f"the 4-bit weights of {name} were repacked by an earlier forward on this CPU, "
                    "after which gradients are wrong; load the base model again and attach the "
                    "library before its first forward."
                )
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no nn.Module field


def quantization_of(model: nn.Module) -> str:
    """Return how a loaded model's weights are held, read from its layers.

    Returns:
        ``none``; ``nf4``, ``fp4`` or ``int8`` for bitsandbytes' layers, followed by ``double
        quantisation``, a compute dtype other than bfloat16 and a threshold other than 6; else the
        method in its config, such as ``gptq, 4 bits``.
    """
    kinds = {kind for module in model.modules() if (kind := _layer_quantization(module))}
    if not kinds:
        return saved_quantization(getattr(model, "config", None))
    return " + ".join(sorted(kinds))


def saved_quantization(config: Any) -> str:
    """Return how weights are held according to a model's config, as `quantization_of` does."""
    held = getattr(config, "quantization_config", None)
    if held is None:
        return "none"
    fields = held if isinstance(held, dict) else held.to_dict()
    if fields.get("load_in_8bit"):
        return _int8(float(fields.get("llm_int8_threshold", 6.0)))
    if fields.get("load_in_4bit"):
        return four_bits(
            str(fields.get("bnb_4bit_quant_type", "fp4")),
            double=bool(fields.get("bnb_4bit_use_double_quant")),
            compute=str(fields.get("bnb_4bit_compute_dtype", "float32")),
        )
    method = str(getattr(fields.get("quant_method"), "value", fields.get("quant_method")))
    return f"{method}, {fields['bits']} bits" if isinstance(fields.get("bits"), int) else method


def _layer_quantization(layer: nn.Module) -> str | None:
    weight: Any = getattr(layer, "weight", None)
    kind = type(weight).__name__  # bitsandbytes need not be installed
    if kind == "Params4bit":
        state = weight.quant_state
        double = weight.compress_statistics if state is None else state.nested
        compute = str(getattr(layer, "compute_dtype", ""))
        return four_bits(weight.quant_type, double=bool(double), compute=compute)
    if kind == "Int8Params":
        return _int8(float(getattr(getattr(layer, "state", None), "threshold", 6.0)))
    return None


def four_bits(kind: str, *, double: bool, compute: str) -> str:
    """Return the description of bitsandbytes' 4-bit layers, see `quantization_of`."""
    compute = compute.removeprefix("torch.")
    return (
        kind
        + ", double quantisation" * double
        + (f", computing in {compute}" if compute not in ("bfloat16", "None", "") else "")
    )


def _int8(threshold: float) -> str:
    return "int8" if threshold == 6.0 else f"int8, threshold {threshold:g}"
