"""Seconds and their ratios."""

from __future__ import annotations

from gks_eval.util.yaml import FrozenModel

__all__ = ["Ratio", "Timing"]


class Timing(FrozenModel):
    """Seconds per call, over interleaved rounds.

    Attributes:
        median: Median over the rounds.
        minimum: Minimum over the rounds.
        maximum: Maximum over the rounds.
        rounds: One number per round, in order.
        calls: Number of calls per round; the round's number is their mean.
    """

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]
    calls: int


class Ratio(FrozenModel):
    """How many times as long one contestant took as another.

    Attributes:
        of_medians: Ratio of the two medians.
        median_of_rounds: Median of the rounds' ratios, which does not depend on drift of the
            machine's speed.
    """

    of_medians: float
    median_of_rounds: float
