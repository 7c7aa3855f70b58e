"""lm-eval's index of tasks, with the tasks and requests of a grid made once for all settings."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["SharedTasks"]


class SharedTasks:
    """An index that loads tasks once, and tasks that build equal requests once.

    Every later evaluation gets copies of the requests, without responses, and the state of the
    random generators that building them left.

    Args:
        index: lm-eval's index of tasks; all else is looked up there.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self._loaded: dict[tuple[str, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the index."""
        return getattr(self._index, name)

    def load(self, names: Sequence[str]) -> Any:
        """Return tasks and groups, loaded by the first call."""
        key = tuple(names)
        if key not in self._loaded:
            loaded = self._index.load(list(names))
            for task in loaded["tasks"].values():
                task.build_all_requests = _builds_once(task, task.build_all_requests)
            self._loaded[key] = loaded
        return self._loaded[key]


def _builds_once(task: Any, build: Callable[..., None]) -> Callable[..., None]:
    built: tuple[dict[str, Any], list[Any], tuple[Any, Any]] | None = None

    def build_all_requests(**asked: Any) -> None:
        nonlocal built
        if built is None or built[0] != asked:
            build(**asked)
            states = random.getstate(), np.random.get_state()
            built = asked, list(task.instances), states
        _, instances, (own, numpys) = built
        random.setstate(own)
        np.random.set_state(numpys)
        task._instances = [_fresh(instance) for instance in instances]

    return build_all_requests


def _fresh(instance: Any) -> Any:
    again = copy.copy(instance)
    again.resps, again.filtered_resps = [], {}
    return again
