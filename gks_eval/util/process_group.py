"""The processes that work on one thing together, under torchrun or `accelerate launch`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Team"]

T = TypeVar("T")

# As lm-eval's: the others wait for whatever one of them has to do alone.
PATIENCE = timedelta(weeks=52)


class Team:
    """The processes that were started together; for one alone, everything here does nothing.

    Every process must make the same calls of `agree`, `gather` and `wait` in the same order.

    Attributes:
        size: Number of processes, over all hosts.
        rank: This one's number.
        leads: Whether this one is the one that decides and writes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.leads = self.rank == 0

    def agree(self, value: T) -> T:
        """Return the leader's value, whatever this process's own is."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self.join()
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all, by rank."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        self.join()
        found: list[T] = gather_object([value])
        return found

    def disband(self) -> None:
        """Have this process go on alone, before anything has connected it with the others."""
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
        self.size, self.rank, self.leads = 1, 0, True

    def wait(self) -> None:
        """Return when all have come here."""
        if self.size > 1:
            self.join().wait_for_everyone()

    def join(self) -> PartialState:
        """Connect the processes, once."""
        import torch
        from accelerate import PartialState

        return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
