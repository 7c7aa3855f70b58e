"""One setting of a grid: evaluated in a temporary folder, then renamed into place.

A finished setting is a folder with lm-eval's own ``results_*.json`` and ``samples_*.jsonl`` and
our ``cell.json``. While a setting runs, every scored request goes into lm-eval's request cache in
the temporary folder, so that a killed run is resumed where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import ResourceError, ResultsError
from gks_eval.grid.evaluate import evaluate
from gks_eval.grid.profile import profile_of
from gks_eval.grid.settings import Cell, Grid
from gks_eval.library.load import Library
from gks_eval.method.declaration import Merge, Router, Rule
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.model.base_model import content_stamp
from gks_eval.tasklib.task_content import code_digest
from gks_eval.util.files import disk_errors, write_text
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.process_group import ProcessGroup
from gks_eval.util.profile_file import write_profile
from gks_eval.util.result_files import CELL_FILE, RESULTS, samples_of
from gks_eval.util.stopwatch import Stopwatch

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["CELL_FILE", "cell_request", "evaluate_cell", "record_of"]

# Arguments that are never written to a file.
_SECRET: Final = ("token", "use_auth_token")


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
        if name not in _SECRET and name != "pretrained"
    }
    plug_ins = _plug_ins(cell)
    return {
        "setting": cell.setting.identity(),
        "arguments": dict(cell.others),
        "library": None if library is None else library.content_of(cell.setting),
        "base": dict(base),
        "model_arguments": {
            name: str(v) for name, v in sorted(grid.model_arguments.items()) if name not in _SECRET
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


def record_of(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished setting; None if its folder does not exist.

    Raises:
        ResultsError: The folder holds no finished setting, or the record cannot be read.
    """
    file = folder / CELL_FILE
    if not file.is_file():
        if folder.exists():
            raise ResultsError(f"{folder} exists but holds no finished cell; move it away.")
        return None
    record = read_or_empty(file)
    if not isinstance(record.get("request"), dict):
        raise ResultsError(f"{file} cannot be read; delete {folder} to run it again.")
    return record


def evaluate_cell(
    lm: GksArrowLM,
    tasks: Any,
    cell: Cell,
    request: Mapping[str, Any],
    grid: Grid,
    group: ProcessGroup,
    watch: Stopwatch | None = None,
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

    Raises:
        ResourceError: The results could not be written.
        UsageError: The items asked for do not exist.
    """
    from lm_eval.api.model import CacheHook
    from lm_eval.loggers import EvaluationTracker

    partial = grid.output / f".{cell.slug}.partial"
    if group.is_main:
        _prepare(partial, lm.identity(), request)
    # Several processes divide all requests again in each call, so a cache per process cannot be
    # used: a killed grid then starts its unfinished cell again.
    cache = str(partial / "requests") if group.size == 1 else None
    written = partial / "written"
    # A name that ends in .json makes the tracker write without a folder for the model. It measures
    # the time from here.
    tracker = EvaluationTracker(output_path=str(written / "results.json"))
    began = time.monotonic()
    with _cache_errors(partial):
        results = evaluate(lm, tasks, grid, use_cache=cache, log_samples=True)
    spent = {
        "seconds": round(time.monotonic() - began, 1),
        "distinct_tokens": sum(group.gather(lm.counts.distinct_tokens)),
    }
    if cache is not None:
        with _cache_errors(partial):
            lm.cache_hook.dbdict.close()
        lm.cache_hook = CacheHook(None)
    if results is None:
        return  # process 0 writes the results

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
    with nullcontext() if watch is None else watch.phase("writing"):
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    if watch is not None:
        write_profile(written, profile_of(watch, lm.counts))
    rows = {task: len(found) for task, found in samples.items()}
    commit = getattr(lm.config, "_commit_hash", None)
    record = {"label": cell.label, "request": request, "commit": commit, "spent": spent}
    _publish(written, grid.output / cell.slug, record, rows)
    shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _cache_errors(partial: Path) -> Iterator[None]:
    # SQLite has its own errors for a full disk.
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ResourceError(
            f"{partial}: scored requests could not be written ({error}); make room and run the "
            "same command again to resume."
        ) from error


def _prepare(partial: Path, identity: str, request: Mapping[str, Any]) -> None:
    """Keep the folder of a killed run with the same request, or start an empty one."""
    marker = partial / "request.json"
    mark = json.dumps({"identity": identity, **request}, sort_keys=True, default=str)
    try:
        usable = marker.read_text(encoding="utf-8") == mark
        for database in partial.glob("requests*.db") if usable else ():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                usable = connection.execute("pragma quick_check").fetchone() == ("ok",)
    except (OSError, ValueError, sqlite3.DatabaseError):
        usable = False
    if usable:
        return
    shutil.rmtree(partial, ignore_errors=True)
    write_text(marker, mark)


def _publish(
    written: Path, folder: Path, record: Mapping[str, Any], rows: Mapping[str, int]
) -> None:
    if not _is_complete(written, rows):
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
    shown = {name: value for name, value in grid.model_arguments.items() if name not in _SECRET}
    if lm.base is not None:
        shown = {"pretrained": lm.base.name, **shown}
    if not cell.setting.uses_library or lm.library is None:
        return {**shown, "router": "none", **cell.others}
    return {**shown, "library": lm.library.name, **cell.setting.arguments(), **cell.others}
