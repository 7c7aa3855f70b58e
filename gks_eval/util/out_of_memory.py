"""Recognises out-of-memory errors."""

from __future__ import annotations

__all__ = ["is_out_of_memory"]

_WORDS = (
    "out of memory",  # CUDA
    "not enough memory",
    "allocate memory",  # torch on a CPU, and the operating system
    "alloc_failed",  # cuBLAS
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in _WORDS)
