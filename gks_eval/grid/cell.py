"""One setting of a grid: evaluated in a temporary folder, then renamed into place.

A finished setting is a folder with lm-eval's own ``results_*.json`` and ``samples_*.jsonl`` and
our ``cell.json``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gks_eval.grid.cell_files import SECRET, publish, spent_since, write_results
from gks_eval.grid.kept_requests import (
    evaluate_and_keep,
    forget,
    partial_folder,
    prepare_part,
    prepare_partial,
)
from gks_eval.grid.settings import Cell, Grid
from gks_eval.grid.shared_tasks import SharedTasks
from gks_eval.library.load import Library
from gks_eval.method.declaration import Merge, Router, Rule
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.model.base_model import content_stamp
from gks_eval.tasklib.task_content import code_digest
from gks_eval.util.process_group import ProcessGroup
from gks_eval.util.result_files import CELL_FILE
from gks_eval.util.stopwatch import Stopwatch

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["CELL_FILE", "cell_request", "evaluate_cell", "evaluate_part"]


def cell_request(
    cell: Cell,
    library: Library | None,
    base: Mapping[str, Any],
    content: Mapping[str, Any],
    grid: Grid,
) -> dict[str, Any]:
    """Return the request of a cell; a finished cell with an equal request is kept.

    Args:
        cell: The setting.
        library: Its library.
        base: As `gks_eval.grid.prepare.base_record` gives it.
        content: The content of the tasks, as `gks_eval.grid.task_index.grid_content` gives it.
        grid: The grid that the cell belongs to.
    """
    stamps = {
        name: content_stamp(str(value))
        for name, value in sorted(grid.model_arguments.items())
        if name not in SECRET and name != "pretrained"
    }
    plug_ins = _plug_ins(cell)
    return {
        "setting": cell.setting.identity(),
        "arguments": dict(cell.others),
        "library": None if library is None else library.content_of(cell.setting),
        "base": dict(base),
        "model_arguments": {
            name: str(v) for name, v in sorted(grid.model_arguments.items()) if name not in SECRET
        },
        "folders": {name: found for name, found in stamps.items() if found is not None},
        "tasks": list(grid.tasks),
        "content": dict(content),
        "evaluation": {name: str(v) for name, v in sorted(grid.evaluation.items())},
        **({"plug_ins": plug_ins} if plug_ins else {}),
    }


def _plug_ins(cell: Cell) -> dict[str, str]:
    """Return digests of the code of methods that come from other packages, by kind and name."""
    found: dict[str, str] = {}
    for method, _ in cell.setting.methods():
        if isinstance(method, Rule) and not RULES.is_own(method):
            found[f"rule {method.name}"] = code_digest(method.joint or method.residual)
        elif isinstance(method, Router) and not ROUTERS.is_own(method):
            found[f"router {method.name}"] = code_digest(method.prepare)
        elif isinstance(method, Merge) and not MERGES.is_own(method):
            found[f"merge {method.name}"] = code_digest(method.combine)
    return found


def evaluate_cell(
    lm: GksArrowLM,
    tasks: Any,
    cell: Cell,
    request: Mapping[str, Any],
    grid: Grid,
    group: ProcessGroup,
    watch: Stopwatch | None = None,
    before: Mapping[str, float] | None = None,
) -> None:
    """Run one setting, which `lm` has applied already, and put its folder in place.

    Args:
        lm: The model, at this setting.
        tasks: lm-eval's index of tasks.
        cell: The setting.
        request: As `cell_request` gives it.
        grid: The grid that the cell belongs to.
        group: The processes that run the grid together.
        watch: Its times go into the folder; None measures nothing.
        before: What the parts of the setting took, as `evaluate_part` returns it.

    Raises:
        ResourceError: The results could not be written.
        UsageError: The items asked for do not exist.
    """
    partial = partial_folder(grid, cell)
    if group.is_main:
        prepare_partial(partial, lm.identity(), request)
    found = write_results(partial, lm, tasks, cell, grid, group, watch)
    if found is None:
        return  # process 0 writes the results
    if before is not None:
        both = {name: took + before.get(name, 0) for name, took in found.spent.items()}
        found = replace(found, spent=both)
    publish(partial, lm, cell, request, grid, found)
    forget(partial)


def evaluate_part(
    lm: GksArrowLM,
    tasks: SharedTasks,
    cell: Cell,
    request: Mapping[str, Any],
    grid: Grid,
    part: int,
    names: Sequence[str],
) -> dict[str, float]:
    """Score the requests of some tasks for a later `evaluate_cell`, which writes the results.

    Args:
        lm: The model, at this setting.
        tasks: lm-eval's index of tasks.
        cell: The setting.
        request: Of the whole setting.
        grid: The grid that the cell belongs to.
        part: Number of the part; parts that are evaluated at the same time have different ones.
        names: Its tasks.

    Returns:
        What it took.
    """
    folder, began = partial_folder(grid, cell, part), time.monotonic()
    prepare_part(folder, partial_folder(grid, cell), lm.identity(), request)
    evaluate_and_keep(folder, lm, tasks.only(names), grid, log_samples=False, bootstrap_iters=0)
    return spent_since(began, lm.counts.distinct_tokens)
