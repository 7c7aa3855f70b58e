"""Properties of this machine."""

from __future__ import annotations

import torch

__all__ = ["fast_bfloat16"]


def fast_bfloat16() -> bool:
    """Return whether bfloat16 is faster than float32: the device has instructions for it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
