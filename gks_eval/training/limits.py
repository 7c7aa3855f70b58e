"""Memory and disk that do not suffice: measured, given back, and reported in sentences.

torch and safetensors hide both behind errors of many kinds, so their words have to be read.
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
        folder: What is written to.

    Raises:
        ResourceError: Memory or disk does not suffice, or `folder` cannot be written.
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
    """Give back what a trained model held, so that the next one finds the memory that it found.

    Three things hold memory after the last variable that names the model is gone: its references
    to itself, bitsandbytes' process-wide table of embeddings, and the allocators, which keep freed
    blocks for themselves.
    """
    import torch

    if "bitsandbytes" in sys.modules:
        from bitsandbytes.optim import GlobalOptimManager

        # The trainer enters every embedding of the model for an 8-bit optimiser, and nothing takes
        # it out; an embedding that is mapped from a file keeps the whole file mapped.
        GlobalOptimManager.get_instance().initialize()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in glibc only
        if trim is not None:
            trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory_mb`, where the system allows it."""
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
