"""Properties of this machine."""

from __future__ import annotations

import platform

import torch

__all__ = ["fast_bfloat16", "is_emulated"]


def fast_bfloat16() -> bool:
    """Return whether bfloat16 is faster than float32: the device has instructions for it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether products in a 16-bit dtype are much slower than in float32.

    On an x86 CPU without AVX-512, torch computes them without vector instructions: a product takes
    7 times as long as in float32, and its gradient 50 times.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    known = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in known and not known[dtype]()
