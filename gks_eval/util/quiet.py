"""Less output from other libraries."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Show only errors of transformers, datasets and lm-eval; their progress bars stay."""
    for name in ("lm_eval", "lm-eval", "transformers", "datasets", "bitsandbytes", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
