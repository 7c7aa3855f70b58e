"""The order in which a gate that stops early reads the items of a baseline."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gks_eval.evidence.samples import Item

__all__ = ["ReadingOrder"]

_Unit = list[tuple[str, int]]


class ReadingOrder:
    """Items in a shuffled order that is fixed by their documents.

    A unit is read as a whole: a cluster of linked items, or the copies of one document. Units are
    ordered by a hash of their label or document, so by nothing that a run could have changed.
    """

    def __init__(self, items: Mapping[str, Sequence[Item]]) -> None:
        """Order the items of every task."""
        units: defaultdict[str, _Unit] = defaultdict(list)
        for task, found in items.items():
            for item in found:
                units[item.cluster or f"{task} {item.key[0]}"].append((task, item.doc_id))
        groups = _linked_tasks(units.values(), items)
        self._by_group: defaultdict[str, list[_Unit]] = defaultdict(list)
        for label in sorted(units, key=_hash):
            self._by_group[groups[units[label][0][0]]].append(units[label])

    def first(self, share: float) -> dict[str, list[int]]:
        """Return per task the numbers of the items in the first share of the units, in order.

        Each task has at least one.
        """
        found: defaultdict[str, list[int]] = defaultdict(list)
        for units in self._by_group.values():
            # 0.55 * 100 is above 55 by rounding.
            count = math.ceil(share * len(units) - 1e-9)
            tasks = {task for unit in units for task, _ in unit}
            for place, unit in enumerate(units):
                if place >= count and tasks <= found.keys():
                    break
                for task, number in unit:
                    found[task].append(number)
        return {task: sorted(numbers) for task, numbers in found.items()}


def _linked_tasks(units: Iterable[_Unit], tasks: Iterable[str]) -> dict[str, str]:
    """Return per task a task that stands for all tasks which share a cluster with it."""
    parents = {task: task for task in tasks}

    def root(task: str) -> str:
        while parents[task] != task:
            task = parents[task]
        return task

    for unit in units:
        first = root(unit[0][0])
        for task, _ in unit[1:]:
            parents[root(task)] = first
    return {task: root(task) for task in parents}


def _hash(label: str) -> str:
    return hashlib.blake2b(label.encode("utf-8", "replace"), digest_size=16).hexdigest()
