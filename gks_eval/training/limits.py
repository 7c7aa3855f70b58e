"""Measures and frees memory, and reports a full memory or disk.

torch and safetensors raise many kinds of errors for these, so their messages must be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import GksError, ResourceError
from gks_eval.util.files import disk_errors
from gks_eval.util.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

__all__ = [
    "limit_errors",
    "peak_memory_mb",
    "release_memory",
    "reset_peak_memory",
]

_DISK_WORDS = (
    "no space left",  # safetensors
    "quota exceeded",
    # torch.save does not say why a write stopped short.
    "unexpected pos",
    "iostream error",
    "pytorchstreamwriter failed",
)


@contextlib.contextmanager
def limit_errors(folder: Path) -> Iterator[None]:
    """Turn errors of torch and safetensors for a full memory or disk into a sentence.

    Args:
        folder: The folder that is written to.

    Raises:
        ResourceError: Memory or disk is full, or `folder` cannot be written.
    """
    with disk_errors(folder):
        try:
            yield
        except GksError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise ResourceError(
                    "training ran out of memory: lower schedule.batch_size (and raise"
                    " schedule.accumulation by the same factor), lower max_tokens, or switch on"
                    " schedule.gradient_checkpointing or load.quantization."
                ) from error
            if any(word in str(error).lower() for word in _DISK_WORDS):
                raise OSError(errno.ENOSPC, "No space left on device") from error
            raise


def release_memory() -> None:
    """Free the memory of a trained model, so that the next one has as much as the first.

    Three things hold memory after the last reference to the model: its reference cycles,
    bitsandbytes' process-wide table of embeddings, and the allocators, which cache freed blocks.
    """
    import torch

    if "bitsandbytes" in sys.modules:
        from bitsandbytes.optim import GlobalOptimManager

        # The trainer registers every embedding for an 8-bit optimiser, and nothing removes it; an
        # embedding that is mapped from a file keeps the whole file mapped.
        GlobalOptimManager.get_instance().initialize()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in glibc only
        if trim is not None:
            trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory_mb`, if the system allows it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii", newline="")


def peak_memory_mb(device: torch.device) -> int:
    """Return the most memory held since `reset_peak_memory`: the GPU's, or the whole process's."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        import psutil  # a dependency of accelerate

        memory = psutil.Process().memory_info()
        return round(int(getattr(memory, "peak_wset", memory.rss)) / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
