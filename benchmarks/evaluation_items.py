"""The log-likelihood requests of tasks, as lm-eval itself builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gks_eval.errors import DataError
from gks_eval.tasklib.local_data import data_root
from gks_eval.util.paths import tasks_dir

__all__ = ["DEMO", "MIX", "Items", "build_items", "build_set", "collections"]

DEMO = ("gks_demo",)
# The paper's sets, all with the same number of items; a set of several tasks divides its items.
MIX = {
    "hellaswag": ("gks_hellaswag",),
    "arc": ("gks_arc_easy", "gks_arc_challenge"),
    "piqa": ("gks_piqa",),
    "boolq": ("gks_boolq",),
    "winogrande": ("gks_winogrande",),
    "openbookqa": ("gks_openbookqa",),
    "xnli": ("gks_xnli_en", "gks_xnli_de", "gks_xnli_fr"),
    "mmlu": ("gks_mmlu_de", "gks_mmlu_fr"),
    "bbh": ("gks_bbh",),
}


@dataclass(frozen=True)
class Items:
    """Items with their requests, one request per choice.

    Attributes:
        requests: lm-eval's instances, grouped by item.
        sizes: Number of choices of each item, in the same order.
    """

    requests: list[Any]
    sizes: list[int]

    @classmethod
    def joined(cls, parts: Sequence[Items]) -> Items:
        """Return the items of several sets as one."""
        return cls(
            [request for part in parts for request in part.requests],
            [size for part in parts for size in part.sizes],
        )

    def first(self, count: int) -> Items:
        """Return the first few items."""
        return Items(self.requests[: sum(self.sizes[:count])], self.sizes[:count])

    def choices(self, log_likelihoods: Sequence[float]) -> list[int]:
        """Return each item's predicted choice: the largest log-likelihood, the first on a tie."""
        chosen, start = [], 0
        for size in self.sizes:
            scores = list(log_likelihoods[start : start + size])
            chosen.append(scores.index(max(scores)))
            start += size
        return chosen


def collections(items: int) -> dict[str, dict[str, Items]]:
    """Build the demo's sets, and the mix if there are data for it.

    Args:
        items: Number of items per set.

    Returns:
        Sets by name, by collection: ``demo``, and ``mix`` if ``GKS_DATA_ROOT`` is set.

    Raises:
        UsageError: ``GKS_DATA_ROOT`` names no folder.
        HubError: A set's data are missing.
        DataError: A set has fewer items.
    """
    found = {"demo": build_items(DEMO, items)}
    if data_root() is not None:
        found["mix"] = {name: build_set(tasks, items) for name, tasks in MIX.items()}
    return found


def build_set(tasks: Sequence[str], items: int) -> Items:
    """Build `items` items of several tasks, divided as equally as possible.

    Raises:
        DataError: A task has too few items.
    """
    shares = [items // len(tasks) + (n < items % len(tasks)) for n in range(len(tasks))]
    parts = [build_items([task], n)[task] for task, n in zip(tasks, shares, strict=True) if n]
    return Items.joined(parts)


def build_items(names: Sequence[str], items: int) -> dict[str, Items]:
    """Build the first `items` of every task, without few-shot examples.

    Raises:
        DataError: A task has too few items that are scored by log-likelihood.
    """
    from lm_eval.tasks import TaskManager

    # Without lm-eval's own tasks, which take seconds to index.
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    built = {}
    for name, task in manager.load(list(names))["tasks"].items():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=items, rank=0, world_size=1)
        scored = [one for one in task.instances if one.request_type == "loglikelihood"]
        grouped = [list(group) for _, group in groupby(scored, key=lambda one: one.doc_id)]
        if len(grouped) < items:
            raise DataError(
                f"--items {items}: {name} has {len(grouped)} items scored by log-likelihood; ask "
                "for fewer."
            )
        built[name] = Items(
            [one for group in grouped for one in group], [len(group) for group in grouped]
        )
    return built
