"""Where the package's own data lie: the tasks and the bundled libraries of adapters.

A wheel carries them in ``gks_eval/_data/``; a checkout has them beside the package.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["adapters_dir", "cache_dir", "tasks_dir"]

_PACKAGE = Path(__file__).resolve().parent


def _data_dir(name: str) -> Path:
    bundled = _PACKAGE / "_data" / name
    return bundled if bundled.is_dir() else _PACKAGE.parent / name


def tasks_dir() -> Path:
    """Return the folder to hand to lm-eval's ``--include_path``."""
    return _data_dir("tasks")


def adapters_dir() -> Path:
    """Return the folder of the bundled libraries, one sub-folder each."""
    return _data_dir("adapters")


def cache_dir() -> Path:
    """Return the folder for what can be made again.

    ``GKS_EVAL_CACHE``, else ``XDG_CACHE_HOME/gks_eval``, else ``~/.cache/gks_eval``.
    """
    if own := os.environ.get("GKS_EVAL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gks_eval"
