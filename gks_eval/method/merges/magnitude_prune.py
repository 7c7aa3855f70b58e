"""Magnitude pruning: each expert's largest entries, added up."""

from __future__ import annotations

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.pruning import Pruned, on_factors, pruned

__all__ = ["magnitude_prune"]


@merge(
    paper="PEFT, https://github.com/huggingface/peft",
    parameters=Pruned,
    equal_factors=on_factors,
    instead="on=delta",
)
def magnitude_prune(layer: Layer, parameters: Pruned) -> LoraPair:
    """The weighted sum of each expert's largest entries.

    Every tensor keeps its entries of largest magnitude, a share of ``density``. The experts'
    tensors are then summed, times lambda.

    Rank R under ``on=factors``; see `gks_eval.method.merges.pruning` for ``on=delta``, which forms
    full matrices.

    Raises:
        CompatibilityError: Ranks or scalings differ under ``on=factors``.
    """
    return pruned(layer, parameters, "magnitude_prune")
