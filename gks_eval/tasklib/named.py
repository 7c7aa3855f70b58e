"""Tasks by name, out of lm-eval's index: without loading a row of their data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gks_eval.errors import whole_reason

__all__ = ["check_named", "leaves", "warn_of_unreadable"]

logger = logging.getLogger(__name__)


def leaves(manager: Any, name: str) -> Iterator[str]:
    """Yield the names of the tasks that a task, group or tag stands for, in their order.

    Args:
        manager: lm-eval's index of tasks.
        name: One of its names; an unknown one, or a group defined within another, stands for
            itself.
    """
    entry = manager.task_index.get(name)
    members = None if entry is None else (entry.cfg or {}).get("task")
    if entry is not None and entry.kind.name == "TAG":
        members = sorted(entry.tags)
    if not isinstance(members, list):
        yield name
        return
    for member in members:
        named = member.get("task", member.get("group")) if isinstance(member, dict) else member
        if isinstance(named, str):
            yield from leaves(manager, named)
        else:
            yield name


def check_named(manager: Any, names: Sequence[str], asked: Mapping[str, Any]) -> None:
    """Refuse what tasks of this package cannot do, as far as their YAMLs tell it.

    Args:
        manager: lm-eval's index of tasks; it need not know all of the names.
        names: Tasks, groups or tags.
        asked: Arguments of `lm_eval.simple_evaluate`, by name.

    Raises:
        UsageError: Few-shot examples are asked for where there are none, or a published
            protocol is to be changed.
    """
    from gks_eval.tasklib.task import no_examples
    from gks_eval.tasklib.whole_text import refuse_changes

    for name in [leaf for asked_for in names for leaf in leaves(manager, asked_for)]:
        entry = manager.task_index.get(name)
        config = (entry.cfg if entry is not None else None) or {}
        if "gks_eval.tasklib.whole_text." in str(config.get("class")):
            refuse_changes(name, asked)
        sampler = (config.get("fewshot_config") or {}).get("sampler")
        shots = asked.get("num_fewshot")
        if shots and str(sampler).endswith("gks_eval.tasklib.task.NoExamples"):
            raise no_examples(shots, name)


def warn_of_unreadable(folders: Sequence[str]) -> None:
    """Name the YAMLs of a user's folders that cannot be read; lm-eval leaves them out in silence.

    Args:
        folders: As ``--include_path`` takes them.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in sorted(path for folder in folders for path in Path(folder).glob("**/*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # whatever a file of anyone's may raise
            logger.warning("%s is left out, as it cannot be read: %s", file, whole_reason(error))
