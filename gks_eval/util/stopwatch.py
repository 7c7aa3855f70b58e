"""Seconds by phase of a run; a phase inside another is subtracted from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["OTHER", "Stopwatch"]

OTHER: Final = "other"
"""The phase outside all others."""


class Stopwatch:
    """Divides the time since it was made among phases: their seconds add up to the whole.

    Attributes:
        settle: Called before the clock is read, for work that a device does in the background.
    """

    def __init__(
        self,
        settle: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settle = settle
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._phase = OTHER
        self._began = self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block as `name`, except that of phases inside it."""
        outer = self._phase
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the watch was made, and those of each phase."""
        self._switch(self._phase)
        return self._since - self._began, dict(self._seconds)

    def _switch(self, name: str) -> None:
        if self.settle is not None:
            self.settle()
        now = self._clock()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now
