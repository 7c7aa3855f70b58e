"""Keeping the libraries' chatter out of a command's output."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Let transformers, datasets and lm-eval speak of trouble only; their progress bars stay."""
    for name in ("lm_eval", "lm-eval", "transformers", "datasets", "bitsandbytes", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
