"""lm-eval's evaluation for a grid."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.grid.settings import Grid

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["evaluate"]


def evaluate(lm: GksArrowLM, tasks: Any, grid: Grid, **how: Any) -> dict[str, Any] | None:
    """Run the grid's tasks on a model.

    Args:
        lm: The model.
        tasks: lm-eval's index of tasks.
        grid: The grid with its tasks and evaluation arguments.
        how: Further arguments of `lm_eval.simple_evaluate`; they override the grid's.

    Returns:
        lm-eval's results; None in all processes but process 0.
    """
    import lm_eval

    with _quiet_git(), _environment_once():
        results: dict[str, Any] | None = lm_eval.simple_evaluate(
            model=lm, tasks=list(grid.tasks), task_manager=tasks, **{**grid.evaluation, **how}
        )
    return results


@contextmanager
def _quiet_git() -> Iterator[None]:
    """Keep git from printing "fatal: not a git repository" for every evaluation.

    lm-eval asks git for the commit of the working directory, and reads it from the files if git
    fails.
    """
    from lm_eval import evaluator
    from lm_eval.loggers.utils import get_commit_from_path

    def commit() -> str | None:
        try:
            asked = ("git", "describe", "--always")
            found = subprocess.run(asked, capture_output=True, text=True, check=True)  # noqa: S603
            return found.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            read: str | None = get_commit_from_path(Path.cwd())
            return read

    original = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = commit
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = original


@contextmanager
def _environment_once() -> Iterator[None]:
    """Describe the environment once per process, not for every setting: torch calls pip for it."""
    from torch.utils import collect_env

    original = collect_env.get_pretty_env_info
    collect_env.get_pretty_env_info = partial(_called_once, original)
    try:
        yield
    finally:
        collect_env.get_pretty_env_info = original


@cache
def _called_once(describe: Callable[[], str]) -> str:
    return describe()
