"""The files of a setting: written in a temporary folder, then put in place."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import ResourceError
from gks_eval.grid.evaluate import evaluate
from gks_eval.grid.kept_requests import evaluate_and_keep
from gks_eval.grid.profile import profile_of
from gks_eval.grid.settings import Cell, Grid
from gks_eval.util.files import disk_errors, write_text
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.process_group import ProcessGroup
from gks_eval.util.profile_file import write_profile
from gks_eval.util.result_files import CELL_FILE, RESULTS, samples_of
from gks_eval.util.stopwatch import Stopwatch

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["SECRET", "Written", "publish", "spent_since", "write_results"]

SECRET: Final = ("token", "use_auth_token")
"""Arguments that are never written to a file."""


@dataclass(frozen=True)
class Written:
    """What was written: rows of samples per task, and what the evaluation took."""

    rows: Mapping[str, int]
    spent: Mapping[str, float]


def write_results(
    partial: Path,
    lm: GksArrowLM,
    tasks: Any,
    cell: Cell,
    grid: Grid,
    group: ProcessGroup,
    watch: Stopwatch | None = None,
    **how: Any,
) -> Written | None:
    """Evaluate one setting and write its results below `partial`, where its requests are kept.

    Args:
        partial: As `gks_eval.grid.kept_requests.prepare_partial` made it.
        lm: The model, at this setting.
        tasks: lm-eval's index of tasks.
        cell: The setting.
        grid: The grid that the cell belongs to.
        group: The processes that run the grid together.
        watch: Its times go into the folder; None measures nothing.
        how: Further arguments of `lm_eval.simple_evaluate`; they override the grid's.

    Returns:
        What was written; None in all processes but process 0.
    """
    from lm_eval.loggers import EvaluationTracker

    written = partial / "written"
    # A name that ends in .json makes the tracker write without a folder for the model. It measures
    # the time from here.
    tracker = EvaluationTracker(output_path=str(written / "results.json"))
    began = time.monotonic()
    # Several processes divide all requests again in each call, so a cache per process cannot be
    # used: a killed grid then starts its unfinished cell again.
    if group.size == 1:
        results = evaluate_and_keep(partial, lm, tasks, grid, log_samples=True, **how)
    else:
        results = evaluate(lm, tasks, grid, log_samples=True, **how)
    spent = spent_since(began, sum(group.gather(lm.counts.distinct_tokens)))
    if results is None:
        return None

    shown = ",".join(f"{name}={value}" for name, value in _shown_arguments(lm, cell, grid).items())
    results["config"]["model"] = "gks_arrow"
    results["config"]["model_args"] = shown
    results["config"]["use_cache"] = None
    samples = results.pop("samples")
    shutil.rmtree(written, ignore_errors=True)
    tracker.general_config_tracker.log_experiment_args(
        model_source="gks_arrow",
        model_args=shown,
        system_instruction=grid.evaluation.get("system_instruction"),
        chat_template=None,
        fewshot_as_multiturn=bool(grid.evaluation.get("fewshot_as_multiturn")),
    )
    with contextlib.nullcontext() if watch is None else watch.phase("writing"):
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    if watch is not None:
        write_profile(written, profile_of(watch, lm.counts))
    return Written({task: len(found) for task, found in samples.items()}, spent)


def spent_since(began: float, distinct_tokens: int) -> dict[str, float]:
    """Return what an evaluation took that began at a time of `time.monotonic`."""
    return {"seconds": round(time.monotonic() - began, 1), "distinct_tokens": distinct_tokens}


def publish(
    partial: Path,
    lm: GksArrowLM,
    cell: Cell,
    request: Mapping[str, Any],
    grid: Grid,
    found: Written,
) -> None:
    """Put what `write_results` wrote in place, as the folder of the setting."""
    written, folder = partial / "written", grid.output / cell.slug
    commit = getattr(lm.config, "_commit_hash", None)
    record = {"label": cell.label, "request": request, "commit": commit, "spent": found.spent}
    if not _is_complete(written, found.rows):
        raise ResourceError(f"results for {folder} could not be written; is the disk full?")
    with disk_errors(folder):
        write_text(written / CELL_FILE, json.dumps(record, indent=2) + "\n")
        written.replace(folder)


def _is_complete(written: Path, rows: Mapping[str, int]) -> bool:
    # lm-eval only logs a warning if a write fails, so the files are read back.
    try:
        (results,) = written.glob(RESULTS)
        if not read_or_empty(results):
            return False
        for task, count in rows.items():
            path = samples_of(results, task)
            text = path.read_bytes() if path else b""
            if text.count(b"\n") != count or not text.endswith(b"\n"):
                return False
    except (OSError, ValueError):
        return False
    return True


def _shown_arguments(lm: GksArrowLM, cell: Cell, grid: Grid) -> dict[str, Any]:
    shown = {name: value for name, value in grid.model_arguments.items() if name not in SECRET}
    if lm.base is not None:
        shown = {"pretrained": lm.base.name, **shown}
    if not cell.setting.uses_library or lm.library is None:
        return {**shown, "router": "none", **cell.others}
    return {**shown, "library": lm.library.name, **cell.setting.arguments(), **cell.others}
