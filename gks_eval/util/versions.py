"""Versions of the packages that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

__all__ = ["versions"]

_PACKAGES = (
    "gks-eval",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "lm-eval",
    "datasets",
    "tokenizers",
    "trl",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of these packages, if installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
