"""DARE, then TIES' election of signs."""

from __future__ import annotations

from gks_eval.method.declaration import Layer
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.merges.pruning import DroppedElected, on_factors, pruned

__all__ = ["dare_ties"]


@merge(
    paper="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    parameters=DroppedElected,
    equal_factors=on_factors,
    instead="on=delta",
)
def dare_ties(layer: Layer, parameters: DroppedElected) -> LoraPair:
    """The mean of the entries with the elected sign, among randomly kept entries.

    Entries are kept with the probability ``density`` and divided by it. The sign of an entry is
    that of its sum over the experts, and the entries of that sign are averaged, times lambda. The
    seed and the layer's name determine the choice. If few experts keep an entry, averaging does not
    undo the division: under ``on=factors``, the update then grows by up to ``1 / density^2``.

    Rank R under ``on=factors``; see `gks_eval.method.merges.pruning` for ``on=delta``, which forms
    full matrices.

    Raises:
        CompatibilityError: Ranks or scalings differ under ``on=factors``.
    """
    return pruned(layer, parameters, "dare_ties")
