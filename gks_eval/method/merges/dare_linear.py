"""DARE: drop entries at random and rescale the others."""

from __future__ import annotations

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.pruning import Dropped, on_factors, pruned

__all__ = ["dare_linear"]


@merge(
    paper="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    parameters=Dropped,
    equal_factors=on_factors,
    instead="on=delta",
)
def dare_linear(layer: Layer, parameters: Dropped) -> LoraPair:
    """The weighted sum of randomly kept entries, divided by the density.

    Every entry is kept with the probability ``density``, so that the expectation is the sum of the
    tensors, times lambda. The seed and the layer's name determine the choice. Under
    ``on=factors`` the expectation holds for A and for B, but not for the updates.

    Rank R under ``on=factors``; see `gks_eval.method.merges.pruning` for ``on=delta``, which forms
    full matrices.

    Raises:
        CompatibilityError: Ranks or scalings differ under ``on=factors``.
    """
    return pruned(layer, parameters, "dare_linear")
