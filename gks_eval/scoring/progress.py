"""Progress of a scorer in requests, updated per forward and per layer.

On a CPU a large batch takes half a minute and answers all its requests at once. A progress bar that
counts answers stands still, jumps, and estimates the remaining time from the jump. One that counts
the work of the requests advances evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["Progress"]


class Progress:
    """Reports whole requests in proportion to the work done.

    Args:
        report: Called with the number of requests to add; the numbers sum up to `requests`.
        requests: Total number of requests.
        work: Their total work, in any unit, such as tokens.
    """

    def __init__(self, report: Callable[[int], object], requests: int, work: float) -> None:
        self._report = report
        self._requests = requests
        self._work = work
        self._finished = 0.0
        self._reported = 0

    def finish(self, work: float) -> None:
        """Count a piece of work as done."""
        self._finished += work
        self._show(0.0)

    def close(self) -> None:
        """Report the remaining requests."""
        self._finished = self._work
        self._show(0.0)

    @contextmanager
    def during(self, modules: Iterable[nn.Module], calls: int, work: float) -> Iterator[None]:
        """Count a piece of work as done, and report parts of it as modules are called.

        Args:
            modules: Modules whose calls are equal parts of the work.
            calls: Total number of calls.
            work: The work of this piece.
        """
        called = 0

        def show(*_: object) -> None:
            nonlocal called
            called += 1
            self._show(work * min(1.0, called / max(1, calls)))

        hooks = [module.register_forward_hook(show) for module in modules]
        try:
            yield
            self.finish(work)
        finally:
            for hook in hooks:
                hook.remove()

    def _show(self, unfinished: float) -> None:
        part = (self._finished + unfinished) / self._work if self._work else 1.0
        reached = int(self._requests * min(1.0, part) + 1e-6)
        if reached > self._reported:
            self._report(reached - self._reported)
            self._reported = reached
