"""The processes that train one adapter together, under torchrun or `accelerate launch`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from gks_eval.config.recipe import Schedule
from gks_eval.errors import UsageError

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Team", "share_of"]

T = TypeVar("T")


class Team:
    """The processes that train together; for one alone, everything here does nothing.

    Attributes:
        size: Number of processes.
        leads: Whether this one is the one that decides and writes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.leads = int(os.environ.get("RANK", "0")) == 0

    def agree(self, value: T) -> T:
        """Return the leader's value, whatever this process's own is."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self.join()
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def wait(self) -> None:
        """Return when all have come here."""
        if self.size > 1:
            self.join().wait_for_everyone()

    def join(self) -> PartialState:
        """Connect the processes, once."""
        import torch
        from accelerate import PartialState

        return PartialState(cpu=not torch.cuda.is_available())


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
