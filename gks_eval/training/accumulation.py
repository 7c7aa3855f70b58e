"""Gradient accumulation, divided among the processes that train one adapter."""

from __future__ import annotations

from gks_eval.errors import UsageError
from gks_eval.training.recipe import Schedule

__all__ = ["share_of"]


def share_of(schedule: Schedule, size: int) -> Schedule:
    """Return the schedule of one process of `size`: the rows of an optimiser step stay the same.

    Raises:
        UsageError: The micro-steps cannot be shared out evenly.
    """
    if schedule.accumulation % size:
        raise UsageError(
            f"schedule.accumulation {schedule.accumulation} cannot be shared by {size} processes;"
            f" start as many processes as divide it, or make it a multiple of {size}."
        )
    return schedule.model_copy(update={"accumulation": schedule.accumulation // size})
