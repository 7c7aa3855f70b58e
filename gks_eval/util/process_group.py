"""The process group that torchrun or `accelerate launch` started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["ProcessGroup"]

T = TypeVar("T")

# As in lm-eval: the other processes wait while one works alone.
PATIENCE = timedelta(weeks=52)


class ProcessGroup:
    """The processes that were started together; with one process, no method communicates.

    Every process must make the same calls of `agree`, `gather` and `wait` in the same order.

    Attributes:
        size: Number of processes, over all hosts.
        rank: Number of this process.
        is_main: Whether this is process 0, which decides and writes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_main = self.rank == 0

    def agree(self, value: T) -> T:
        """Return the value of process 0."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self.join()
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        self.join()
        found: list[T] = gather_object([value])
        return found

    def leave(self) -> None:
        """Make this process run alone; call it before the process group is initialised."""
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
        self.size, self.rank, self.is_main = 1, 0, True

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            self.join().wait_for_everyone()

    def join(self) -> PartialState:
        """Initialise the process group, once."""
        import torch
        from accelerate import PartialState

        return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
