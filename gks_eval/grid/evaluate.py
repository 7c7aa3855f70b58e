"""lm-eval's evaluation as a grid asks for it, with sentences for items that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gks_eval.errors import UsageError
from gks_eval.grid.settings import Grid

if TYPE_CHECKING:
    from gks_eval.lm import GksArrowLM

__all__ = ["evaluate"]


def evaluate(lm: GksArrowLM, tasks: Any, grid: Grid, **how: Any) -> dict[str, Any] | None:
    """Run the grid's tasks on a model.

    Args:
        lm: The model.
        tasks: lm-eval's index of tasks.
        grid: Whose tasks and evaluation they are.
        how: Further arguments of `lm_eval.simple_evaluate`; they win over the grid's.

    Returns:
        lm-eval's results; None in a process that does not lead.

    Raises:
        UsageError: The items asked for are not there.
    """
    import lm_eval

    try:
        results: dict[str, Any] | None = lm_eval.simple_evaluate(
            model=lm, tasks=list(grid.tasks), task_manager=tasks, **{**grid.evaluation, **how}
        )
    except AssertionError as error:
        # lm-eval's only check of item numbers.
        if "--samples" not in str(error):
            raise
        raise UsageError(f"--samples: {' '.join(str(error).split())}.") from None
    if results is not None:
        known = set(results["n-samples"])
        if unknown := sorted(set(grid.evaluation.get("samples", ())) - known):
            raise UsageError(f"--samples names {unknown[0]}, which is no task of this grid.")
    return results
