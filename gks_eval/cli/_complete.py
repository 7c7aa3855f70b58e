"""What a shell's completion offers for names: bundled libraries and recipes, tasks, settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gks_eval.paths import bundled, tasks_dir

__all__ = ["libraries", "recipes", "settings", "task", "tasks"]

_SETTINGS: Final = ("base", "arrow", "uniform", "gks:avg")
_NAME: Final = re.compile(r"^(?:task|group|tag): *['\"]?([\w-]+)", re.MULTILINE)


def libraries(incomplete: str) -> list[str]:
    """Return the bundled libraries whose name starts so; folders are the shell's own."""
    return _starting(bundled("library.yaml"), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Return the bundled libraries with a recipe."""
    return _starting(bundled("recipe.yaml"), incomplete)


def task(incomplete: str) -> list[str]:
    """Return the package's tasks and groups."""
    return _starting(_task_names(), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Return a comma-separated list with its last task completed."""
    return _last_of_list(_task_names(), incomplete)


def settings(incomplete: str) -> list[str]:
    """Return a comma-separated list with its last setting completed."""
    return _last_of_list(_SETTINGS, incomplete)


def _task_names() -> set[str]:
    # Read as text: importing lm-eval would take seconds at every press of the key.
    texts = (path.read_text(encoding="utf-8") for path in tasks_dir().glob("*/*.yaml"))
    return {name for text in texts for name in _NAME.findall(text)}


def _last_of_list(names: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(names, last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
