"""Many tests at once."""

from __future__ import annotations

import gc
from collections.abc import Sequence

__all__ = ["holm"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    The i-th smallest of m becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1. Compared
    with alpha, this bounds the chance of any false alarm by alpha, however the tests depend on each
    other. Holm, Scandinavian Journal of Statistics 1979.
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    # multipletests calls gc.collect(), which takes 0.1 s and more unless the heap is frozen.
    gc.freeze()
    try:
        return [float(p) for p in multipletests(p_values, method="holm")[1]]
    finally:
        gc.unfreeze()
