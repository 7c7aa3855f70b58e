"""Stand-ins for a library's adapters at one layer: the controls of a setting.

``general=`` replaces what is subtracted, the mean of the general adapters by the setting's rule:

- ``random``: Gaussian factors with the norms of the mean, see `gks_eval.method.controls`
- ``rotated``: the mean's singular values in random directions
- ``permuted``: the general adapters of another layer of the same shape
- ``expert:NAME``: an expert of the library
- ``other``: for each expert, the next expert of the library (for the last, the first)

``experts=`` replaces what is mixed:

- ``random``: Gaussian factors with the norms of each expert; the setting's rule subtracts as usual
- ``rescaled``: each expert with the norm of its residual; nothing is subtracted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch

from gks_eval.library.peft_adapter import Adapter
from gks_eval.method.controls import exchanged, generator_of, random_pair, rescaled, rotated
from gks_eval.method.foreign import residuals_of
from gks_eval.method.lora import LoraPair, average_factors, stack, update_norm
from gks_eval.method.setting import Setting

__all__ = ["stand_ins_at"]

Pairs = list[LoraPair]


class Adapters(Protocol):
    """The part of `gks_eval.library.library.Library` that this file uses."""

    @property
    def experts(self) -> Mapping[str, Adapter]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]: ...
    def general_of(self, setting: Setting) -> list[Adapter]: ...
    def chosen_experts(self, setting: Setting) -> tuple[str, ...]: ...
    def pair(self, adapter: Adapter, module: str) -> LoraPair: ...


def stand_ins_at(library: Adapters, module: str, setting: Setting) -> tuple[Pairs, Pairs]:
    """Return the pairs to mix and the pairs to subtract at one layer, with stand-ins.

    With ``general=other`` or ``experts=rescaled``, the first are residuals or rescaled experts, and
    there are no pairs to subtract.

    Args:
        library: The adapters.
        module: The layer.
        setting: A setting with stand-ins.
    """
    chosen = setting.stand_ins
    rule, parameters = setting.rule_method()
    names = library.chosen_experts(setting)
    experts = [library.pair(library.experts[name], module) for name in names]
    if chosen.experts == "random":
        of_update = setting.merge is not None or setting.combine == "outputs"
        experts = [
            random_pair(
                pair, generator_of(chosen.seed, "experts", name, module), of_update=of_update
            )
            for name, pair in zip(names, experts, strict=True)
        ]
    others = chosen.general == "other"
    common = [] if others else _subtracted(library, module, setting)
    if not others and chosen.experts != "rescaled":
        return experts, common
    wide = [_wide(pair) for pair in experts]
    if others:
        after = [[_wide(_next_expert(library, name, module))] for name in names]
        residuals = [
            residuals_of(rule, [task], other, parameters, module)[0]
            for task, other in zip(wide, after, strict=True)
        ]
    else:
        general = [_wide(pair) for pair in common]
        residuals = residuals_of(rule, wide, general, parameters, module)
    if chosen.experts != "rescaled":
        return residuals, []
    norms = map(update_norm, residuals)
    return [rescaled(pair, norm) for pair, norm in zip(wide, norms, strict=True)], []


def _subtracted(library: Adapters, module: str, setting: Setting) -> Pairs:
    chosen = setting.stand_ins
    subtracted = library.general_of(setting)
    if chosen.expert is not None:
        return [library.pair(library.experts[chosen.expert], module)]
    if chosen.general == "permuted":
        updated = {name for adapter in subtracted for name in adapter.pairs}
        shapes = tuple((name, library.shapes[name]) for name in sorted(updated))
        module = _exchange(shapes, chosen.seed).get(module, module)
    general = [library.pair(adapter, module) for adapter in subtracted]
    if chosen.general not in ("random", "rotated") or not general:
        return general
    rule, _ = setting.rule_method()
    wide = [_wide(pair) for pair in general]
    mean = stack(wide, [1 / len(wide)] * len(wide)) if rule.linear else average_factors(wide)
    generator = generator_of(chosen.seed, "general", module)
    if chosen.general == "rotated":
        return [rotated(mean, generator)]
    return [random_pair(mean, generator, of_update=rule.linear)]


def _next_expert(library: Adapters, name: str, module: str) -> LoraPair:
    names = list(library.experts)
    after = names[(names.index(name) + 1) % len(names)]
    return library.pair(library.experts[after], module)


@lru_cache(maxsize=8)
def _exchange(shapes: Sequence[tuple[str, tuple[int, int]]], seed: int) -> dict[str, str]:
    return exchanged(dict(shapes), seed)


def _wide(pair: LoraPair) -> LoraPair:
    return pair.to(torch.float32)
