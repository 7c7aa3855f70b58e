"""TIES: trim, elect a sign, average what agrees."""

from __future__ import annotations

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.pruning import Elected, on_factors, pruned

__all__ = ["ties"]


@merge(
    paper="Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
    parameters=Elected,
    equal_factors=on_factors,
    instead="on=delta",
)
def ties(layer: Layer, parameters: Elected) -> LoraPair:
    """The mean of the entries with the elected sign, among each expert's largest.

    Every tensor keeps its entries of largest magnitude, a share of ``density``. The sign of an
    entry is that of its sum over the experts, and the entries of that sign are averaged, times
    lambda. Density and lambda default to the paper's values without tuning.

    Rank R under ``on=factors``; see `gks_eval.method.merges.pruning` for ``on=delta``, which forms
    full matrices.

    Raises:
        CompatibilityError: Ranks or scalings differ under ``on=factors``.
    """
    return pruned(layer, parameters, "ties")
