"""What bitsandbytes' 4- and 8-bit linear layers need from us."""

from __future__ import annotations

import torch
from torch import nn

from gks_eval.errors import CompatibilityError

__all__ = ["compute_dtype", "is_quantized", "keep_portable_layout"]


def is_quantized(layer: nn.Module) -> bool:
    """Tell whether a linear layer holds packed weights."""
    return not layer.weight.dtype.is_floating_point if hasattr(layer, "weight") else False


def compute_dtype(layer: nn.Module, model: nn.Module) -> torch.dtype:
    """Return the type of the activations that reach `layer`.

    A plain layer computes in the type of its weight. A quantised one takes whatever the model's
    unquantised parts hand it, which is the model's own type.
    """
    if not is_quantized(layer):
        dtype: torch.dtype = layer.weight.dtype  # type: ignore[assignment]
        return dtype
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(floating, torch.float32)


def keep_portable_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on a CPU.

    On CPUs with AVX512-BF16 the first forward in evaluation mode rewrites a Linear4bit's weights
    for a kernel of its own; afterwards dequantising them, and gradients through them, are silently
    wrong. With the flag off every forward uses the portable kernel and the weights stay as loaded.
    Call before the first forward.

    Raises:
        CompatibilityError: A forward has repacked weights already; bitsandbytes cannot undo that,
            for it rounds the scales to bfloat16.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise CompatibilityError(
                    f"the 4-bit weights of {name} were repacked by an earlier forward on this CPU, "
                    "after which gradients are wrong; load the base model anew and attach the "
                    "library before its first forward."
                )
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no nn.Module field
