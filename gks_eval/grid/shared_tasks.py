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

    def only(self, names: Sequence[str]) -> _Part:
        """Return an index that loads only these of the loaded tasks."""
        return _Part(self, names)


class _Part:
    """An index with a part of the tasks.

    They build their requests themselves: a prompt that draws from a global random generator depends
    on the tasks before it, so these requests are none for a later evaluation of all tasks.
    """

    def __init__(self, index: SharedTasks, names: Sequence[str]) -> None:
        self._index, self._names = index, names

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the index."""
        return getattr(self._index, name)

    def load(self, names: Sequence[str]) -> Any:
        """Return the part's tasks, without groups."""
        loaded = self._index.load(names)
        tasks = {name: copy.copy(loaded["tasks"][name]) for name in self._names}
        for task in tasks.values():
            del task.build_all_requests
        return {**loaded, "tasks": tasks, "groups": {}, "group_map": {}}


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
