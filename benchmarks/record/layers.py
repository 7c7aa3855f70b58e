"""Records of single layers."""

from __future__ import annotations

from benchmarks.record.timed import Ratio, Timing
from gks_eval.util.yaml import FrozenModel

__all__ = ["ExpertsRow", "LayerRow", "RouterRow"]


class LayerRow(FrozenModel):
    """One linear layer: the base's product, and the two routed updates without it.

    Attributes:
        width_in: K.
        width_out: D.
        tokens: T.
        seconds: Of ``base``, ``routed``, ``peft``; in 16-bit layers also of ``prototypes``, the
            float32 product of tokens and prototypes, which is a part of ``routed``.
        peft_over_routed: Speed-up.
        routed_over_base: Cost of the update.
        peak_bytes: Allocated by ``routed`` and ``peft``, their results included.
        max_difference: Largest entry of the difference of the two updates.
        largest: Largest entry of PEFT's update, both by magnitude.
    """

    width_in: int
    width_out: int
    tokens: int
    seconds: dict[str, Timing]
    peft_over_routed: Ratio
    routed_over_base: Ratio
    peak_bytes: dict[str, int]
    max_difference: float
    largest: float


class RouterRow(FrozenModel):
    """The routed update of one linear layer under several routers, one general adapter subtracted.

    Seconds are processor time on a CPU.

    Attributes:
        width_in: K.
        width_out: D.
        tokens: T.
        rank: Rank of all adapters.
        rule: How the general adapter is subtracted.
        seconds: By router.
        over_uniform: By router.
        over_arrow: By router.
    """

    width_in: int
    width_out: int
    tokens: int
    rank: int
    rule: str
    seconds: dict[str, Timing]
    over_uniform: dict[str, Ratio]
    over_arrow: dict[str, Ratio]


class ExpertsRow(FrozenModel):
    """One layer with a library of some size: the base's forward, and the routed one's.

    Attributes:
        layer: ``K->D`` of a linear layer, or a whole transformer layer.
        experts: Experts of the library.
        tokens: T.
        seconds: Of ``base`` and ``routed``; at a linear layer also of the update alone by each
            plan of `gks_eval.method.mixing.plan`.
        routed_over_base: Cost of the routed layer, the base's part included.
        plan: The plan that ``routed`` follows at a linear layer; else empty.
        plan_over_fastest: Cost of that plan's update relative to the fastest plan's.
    """

    layer: str
    experts: int
    tokens: int
    seconds: dict[str, Timing]
    routed_over_base: Ratio
    plan: str = ""
    plan_over_fastest: Ratio | None = None
