"""The hardware of a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

__all__ = ["hardware"]


def hardware(device: str) -> dict[str, str | int]:
    """Return the processor, its cores, torch's threads, memory, and the GPU if one is used."""
    found: dict[str, str | int] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "threads": torch.get_num_threads(),
        "bfloat16": "in hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulated",
        "system": platform.platform(terse=True),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = round(pages / 2**30)
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cores() -> int:
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
