"""How far a scorer is, forward by forward and layer by layer, in whole requests.

A batch of many tokens takes a CPU half a minute and answers all its requests at once. Counted by
answers a progress bar would stand still and then jump, and estimate the time from the jump; counted
by the work behind the requests it advances evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["Progress"]


class Progress:
    """Reports whole requests in proportion to the work done.

    Args:
        report: Called with the number of requests to add; they sum up to `requests`.
        requests: Requests in all.
        work: What they take in all, in any unit, such as tokens.
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
        """Report the requests that are still missing."""
        self._finished = self._work
        self._show(0.0)

    @contextmanager
    def during(self, modules: Iterable[nn.Module], calls: int, work: float) -> Iterator[None]:
        """Count a piece of work as done, and report parts of it as modules are called.

        Args:
            modules: Modules of which every call is an equal part.
            calls: Calls in all.
            work: What the piece takes.
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
