"""Shell completion of names: bundled libraries and recipes, tasks, settings."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Final

from gks_eval.util.paths import MANIFEST, RECIPE, bundled, tasks_dir

__all__ = ["joined_bash_words", "libraries", "recipes", "settings", "task", "tasks", "treatments"]

_NAME: Final = re.compile(r"^(?:task|group|tag): *['\"]?([\w-]+)", re.MULTILINE)


@contextmanager
def joined_bash_words() -> Iterator[None]:
    """Rejoin words that bash has split at colons and equals signs, while completing.

    ``--settings base,gks:a`` arrives as ``base,gks``, ``:`` and ``a``. bash replaces the last of
    them only, so the part before it is removed from the completions.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    position = os.environ.get("COMP_CWORD", "")
    if os.environ.get("_GKS_EVAL_COMPLETE") != "complete_bash" or not position.isdecimal():
        yield
        return
    words = words[: int(position) + 1]
    joined: list[str] = []
    after_break = False
    for word in words:
        is_break = word != "" and not word.strip(":=")
        if joined and (is_break or after_break):
            joined[-1] += word
        else:
            joined.append(word)
        after_break = is_break
    os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}
    value = joined[-1].partition("=")[2] if joined[-1].startswith("--") else joined[-1]
    cut = value.rfind(":") + 1 if joined[-1] != words[-1] else 0
    found = io.StringIO()
    try:
        with redirect_stdout(found):
            yield
    finally:
        for line in found.getvalue().splitlines():
            print(line[cut:])


def libraries(incomplete: str) -> list[str]:
    """Return the bundled libraries whose name starts like this; the shell completes folders."""
    return _starting(bundled(MANIFEST), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Return the bundled libraries with a recipe."""
    return _starting(bundled(RECIPE), incomplete)


def task(incomplete: str) -> list[str]:
    """Return the package's tasks and groups."""
    return _starting(_task_names(), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Return a comma-separated list with its last task completed."""
    return _last_of_list(_task_names(), incomplete)


def settings(incomplete: str) -> list[str]:
    """Return a comma-separated list with its last setting completed."""
    from gks_eval.method.registry import MERGES, ROUTERS

    merges = (f"merge:{name}" for name in MERGES.names())
    return _last_of_list(["base", "gks:avg", *ROUTERS.names(), *merges], incomplete)


def treatments(incomplete: str) -> list[str]:
    """Return the routers with all general adapters subtracted."""
    from gks_eval.method.registry import ROUTERS

    controls = ("arrow", "random", "shuffled")
    routers = (f"{name}:avg" for name in ROUTERS.names() if name not in controls)
    return _starting(["gks:avg", *routers], incomplete)


def _task_names() -> set[str]:
    # Read as text: importing lm-eval would take seconds per key press.
    texts = (path.read_text(encoding="utf-8") for path in tasks_dir().glob("*/*.yaml"))
    return {name for text in texts for name in _NAME.findall(text)}


def _last_of_list(names: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(names, last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
