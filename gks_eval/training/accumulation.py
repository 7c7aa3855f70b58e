"""Gradient accumulation, divided among the processes that train one adapter."""

from __future__ import annotations

from gks_eval.errors import UsageError
from gks_eval.training.recipe import Schedule

__all__ = ["share_of"]


def share_of(schedule: Schedule, size: int) -> Schedule:
    """Return the schedule of one of `size` processes; the rows per optimiser step stay the same.

    Raises:
        UsageError: The micro-steps cannot be divided evenly.
    """
    if schedule.accumulation % size:
        raise UsageError(
            f"schedule.accumulation {schedule.accumulation} cannot be divided among {size}"
            f" processes; use a number of processes that divides it, or a multiple of {size}."
        )
    return schedule.model_copy(update={"accumulation": schedule.accumulation // size})
