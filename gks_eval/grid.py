"""Many settings over one load of the base model, each into a folder of its own, resumable.

A finished setting is a folder with lm-eval's own ``results_*.json`` and ``samples_*.jsonl`` and
our ``cell.json``, which appears whole, by a rename. While a setting runs, every scored request goes
into lm-eval's request cache beside it, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.base_model import content_stamp
from gks_eval.config.setting import Setting, digest
from gks_eval.embedded import resolve_base_model
from gks_eval.errors import ResourceError, ResultsError, UsageError, did_you_mean
from gks_eval.files import disk_errors, write_text
from gks_eval.library import Library, load_library, read_manifest

if TYPE_CHECKING:
    from gks_eval.lm import GksArrowLM

__all__ = ["CELL_FILE", "Cell", "Grid", "parse_settings", "run_grid", "task_manager"]

logger = logging.getLogger(__name__)

CELL_FILE: Final = "cell.json"
# Arguments after `;` that can change between two settings on one loaded base.
_SWAPPABLE: Final = ("library", "scoring", "batch_size")
# Arguments that no file may hold.
_SECRET: Final = ("token", "use_auth_token")


@dataclass(frozen=True)
class Cell:
    """One setting of a grid.

    Attributes:
        label: As the user wrote it.
        slug: The name of its folder.
        setting: What it stands for.
        others: Further arguments of the model, of `_SWAPPABLE`.
    """

    label: str
    slug: str
    setting: Setting
    others: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        settings: In the grid's grammar, see `Setting.parse`.
        tasks: Names for lm-eval.
        output: Folder that gets one sub-folder a setting.
        library: Of all settings that name no other.
        model_arguments: For the model class, shared by all settings.
        evaluation: For `lm_eval.simple_evaluate`: limit, num_fewshot, apply_chat_template, ...
        include_paths: Folders of task YAMLs beside ours.
    """

    settings: Sequence[str]
    tasks: Sequence[str]
    output: Path
    library: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    include_paths: Sequence[str] = ()


def parse_settings(texts: Iterable[str]) -> list[Cell]:
    """Read the settings of a grid.

    Raises:
        UsageError: One does not follow the grammar, needs the base loaded anew, or stands twice.
    """
    cells: list[Cell] = []
    for text in texts:
        setting, others = Setting.parse(text)
        for name in others:
            if name not in _SWAPPABLE:
                known = {*_SWAPPABLE, *Setting.model_fields, "preset"}
                raise UsageError(
                    f"setting {text!r}: {name} cannot change on a loaded base "
                    f"({did_you_mean(name, known)}); give it to the whole grid with --model-args."
                )
        cells.append(Cell(text, _slug(text), setting, others))
    labels = [cell.label for cell in cells]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UsageError(f"--settings names {twice[0]} twice; name each setting once.")
    if not cells:
        raise UsageError("--settings is empty; name at least one, such as arrow or gks:avg.")
    return cells


def _slug(text: str) -> str:
    plain = re.sub(r"[:;=]", lambda sign: "_" if sign[0] == ";" else "-", text.strip())
    slug = re.sub(r"[^\w.+-]+", "-", plain, flags=re.ASCII).strip("-.")
    # Where more than the grammar's own signs were replaced, two texts could become one name.
    return (
        slug if slug == plain and len(slug) < 100 else f"{slug[:80]}-{digest({'text': text})[:8]}"
    )


def run_grid(grid: Grid, on_cell: Callable[[Cell, str], None] | None = None) -> list[Path]:
    """Run every setting that is not finished yet.

    Args:
        grid: What to run.
        on_cell: Called with a cell and ``"kept"``, ``"running"`` or ``"done"``.

    Returns:
        The settings' folders, in order.

    Raises:
        UsageError: A setting cannot be run; all are checked before the base is loaded.
        ResultsError: A folder holds a finished cell made by other arguments.
        ResourceError: Another process works on the same output, or results could not be written.
        GksError: As `GksArrowLM`.
    """
    from filelock import FileLock, Timeout

    cells = parse_settings(grid.settings)
    if "library" in grid.model_arguments:
        raise UsageError("--model-args: the library has an option of its own, --library.")
    base = _base(grid)
    libraries = _check(cells, base, grid)
    try:
        with disk_errors(grid.output):
            grid.output.mkdir(parents=True, exist_ok=True)
            (grid.output / ".lock").touch()
        with FileLock(grid.output / ".lock", timeout=0):
            return _run_cells(cells, libraries, base, grid, on_cell or (lambda _cell, _state: None))
    except Timeout:
        raise ResourceError(
            f"another grid is writing to {grid.output}; wait for it, or name another --output."
        ) from None


def _check(cells: Sequence[Cell], base: Mapping[str, Any], grid: Grid) -> dict[str, Library]:
    """Load every library named and check each setting against its own."""
    from gks_eval.lm import DEFAULT_LIBRARY

    libraries: dict[str, Library] = {}
    for cell in cells:
        if not cell.setting.uses_library:
            continue
        name = cell.others.get("library") or grid.library or DEFAULT_LIBRARY
        if name not in libraries:
            libraries[name] = load_library(name)
        libraries[name].check(cell.setting)
        made_for = libraries[name].config.base_model
        if "pretrained" not in grid.model_arguments and made_for != base["name"]:
            raise UsageError(
                f"setting {cell.label!r}: library {name} was made for {made_for}, and the grid "
                f"runs on {base['name']}; say --pretrained if one base is meant for both."
            )
    return libraries


def _run_cells(
    cells: Sequence[Cell],
    libraries: Mapping[str, Library],
    base: Mapping[str, Any],
    grid: Grid,
    on_cell: Callable[[Cell, str], None],
) -> list[Path]:
    from gks_eval.lm import DEFAULT_LIBRARY

    lm: GksArrowLM | None = None
    tasks: Any = None
    default = grid.library or DEFAULT_LIBRARY
    for cell in cells:
        folder = grid.output / cell.slug
        library = libraries.get(cell.others.get("library") or default)
        if _finished(folder, _request(cell, library, base, grid)):
            on_cell(cell, "kept")
            continue
        on_cell(cell, "running")
        if lm is None:
            tasks = task_manager(grid.tasks, grid.include_paths)
            lm = _load(cell, default, base, grid)
        _swap(lm, cell, library, grid)
        _evaluate(lm, tasks, cell, _request(cell, library, base, grid), grid)
        on_cell(cell, "done")
    return [grid.output / cell.slug for cell in cells]


def _load(cell: Cell, library: str, base: Mapping[str, Any], grid: Grid) -> GksArrowLM:
    from gks_eval.lm import GksArrowLM

    # The base is the grid's whichever setting happens to run first.
    arguments = {"pretrained": base["name"], **grid.model_arguments, **cell.setting.arguments()}
    if base.get("revision"):
        arguments.setdefault("revision", base["revision"])
    if not {"load_in_4bit", "load_in_8bit"} & set(arguments):
        arguments["load_in_8bit" if base.get("quantization") == "int8" else "load_in_4bit"] = (
            base.get("quantization", "none") != "none"
        )
    return GksArrowLM(library=cell.others.get("library", library), **arguments)


def task_manager(names: Sequence[str], include_paths: Sequence[str] = ()) -> Any:
    """Return lm-eval's index of tasks with ours in it.

    Args:
        names: Tasks or groups that must be there.
        include_paths: Folders of task YAMLs beside ours.

    Raises:
        UsageError: One of `names` is unknown; the sentence suggests the nearest of ours.
    """
    from lm_eval.tasks import TaskManager

    from gks_eval.paths import tasks_dir

    manager = TaskManager(include_path=[str(tasks_dir()), *include_paths])
    for name in names:
        if not manager.match_tasks([name]):
            raise UsageError(f"--tasks: {name} is unknown; {_near_task(name, manager)}")
    return manager


def _near_task(name: str, manager: Any) -> str:
    near = did_you_mean(name, [task for task in manager.all_tasks if task.startswith("gks_")])
    return f"{near}." if near.startswith("did") else "`gks-eval run ls tasks` lists them."


def _swap(lm: GksArrowLM, cell: Cell, library: Library | None, grid: Grid) -> None:
    lm.apply(cell.setting, library)
    lm.choose_scoring(cell.others.get("scoring") or grid.model_arguments.get("scoring"))
    batch_size = cell.others.get("batch_size") or grid.model_arguments.get("batch_size")
    if batch_size is not None:
        lm.choose_batch_size(batch_size)


def _base(grid: Grid) -> dict[str, Any]:
    """What the grid's library and arguments say of the base, whichever setting runs first."""
    from gks_eval.lm import DEFAULT_LIBRARY

    pretrained = grid.model_arguments.get("pretrained")
    if grid.library is None and pretrained is not None:
        return {"name": str(pretrained), "content": content_stamp(str(pretrained))}
    _, manifest = read_manifest(grid.library or DEFAULT_LIBRARY)
    name = str(pretrained or manifest.base_model)
    return {
        "name": name,
        "content": content_stamp(resolve_base_model(name)),
        "revision": manifest.revision,
        "quantization": manifest.load.quantization,
    }


def _request(
    cell: Cell, library: Library | None, base: Mapping[str, Any], grid: Grid
) -> dict[str, Any]:
    """What a finished cell must have been asked for to be kept."""
    routed = library is not None and cell.setting.uses_library
    return {
        "setting": cell.setting.identity(),
        "arguments": dict(cell.others),
        "library": library.content_hash if library is not None and routed else None,
        "base": dict(base),
        "model_arguments": {
            name: str(v) for name, v in sorted(grid.model_arguments.items()) if name not in _SECRET
        },
        "tasks": list(grid.tasks),
        "include_paths": [str(path) for path in grid.include_paths],
        "evaluation": {name: str(v) for name, v in sorted(grid.evaluation.items())},
    }


def _finished(folder: Path, request: Mapping[str, Any]) -> bool:
    record = folder / CELL_FILE
    if not record.is_file():
        if folder.exists():
            raise ResultsError(f"{folder} is there but is no finished cell; move it away.")
        return False
    try:
        found = dict(json.loads(record.read_text(encoding="utf-8"))["request"])
    except (ValueError, KeyError, TypeError, OSError):
        raise ResultsError(f"{record} cannot be read; delete {folder} to run it anew.") from None
    if found != request:
        differing = ", ".join(sorted(key for key in request if found.get(key) != request[key]))
        raise ResultsError(
            f"{folder} was made with other arguments ({differing}); name another --output, or "
            "delete it."
        )
    return True


def _evaluate(
    lm: GksArrowLM, tasks: Any, cell: Cell, request: Mapping[str, Any], grid: Grid
) -> None:
    import lm_eval
    from lm_eval.api.model import CacheHook
    from lm_eval.loggers import EvaluationTracker

    aside = grid.output / f".{cell.slug}.partial"
    _prepare(aside, lm.identity(), request)
    cache = aside / "requests"
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(grid.tasks),
        task_manager=tasks,
        use_cache=str(cache),
        log_samples=True,
        **grid.evaluation,
    )
    lm.cache_hook.dbdict.close()
    lm.cache_hook = CacheHook(None)
    if results is None:
        return  # another rank writes

    shown = ",".join(f"{name}={value}" for name, value in _shown_arguments(lm, cell, grid).items())
    results["config"]["model"] = "gks_arrow"
    results["config"]["model_args"] = shown
    results["config"]["use_cache"] = None
    samples = results.pop("samples")
    # A name that ends in .json makes the tracker write flat, without a folder for the model.
    written = aside / "written"
    shutil.rmtree(written, ignore_errors=True)
    tracker = EvaluationTracker(output_path=str(written / "results.json"))
    tracker.general_config_tracker.log_experiment_args(
        model_source="gks_arrow",
        model_args=shown,
        system_instruction=grid.evaluation.get("system_instruction"),
        chat_template=None,
        fewshot_as_multiturn=bool(grid.evaluation.get("fewshot_as_multiturn")),
    )
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    rows = {task: len(found) for task, found in samples.items()}
    _publish(written, grid.output / cell.slug, cell, request, rows)
    shutil.rmtree(aside, ignore_errors=True)


def _prepare(aside: Path, identity: str, request: Mapping[str, Any]) -> None:
    """Keep what a killed run of the same request left behind, and nothing else."""
    marker = aside / "request.json"
    mark = json.dumps({"identity": identity, **request}, sort_keys=True, default=str)
    try:
        usable = marker.read_text(encoding="utf-8") == mark
        for database in aside.glob("requests*.db") if usable else ():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                usable = connection.execute("pragma quick_check").fetchone() == ("ok",)
    except (OSError, ValueError, sqlite3.DatabaseError):
        usable = False
    if usable:
        return
    shutil.rmtree(aside, ignore_errors=True)
    write_text(marker, mark)


def _publish(
    written: Path, folder: Path, cell: Cell, request: Mapping[str, Any], rows: Mapping[str, int]
) -> None:
    if not _is_complete(written, rows):
        raise ResourceError(f"results for {folder} could not be written; is the disk full?")
    record = {"label": cell.label, "request": request}
    with disk_errors(folder):
        write_text(written / CELL_FILE, json.dumps(record, indent=2) + "\n")
        written.replace(folder)


def _is_complete(written: Path, rows: Mapping[str, int]) -> bool:
    # lm-eval logs a failed write as a warning and goes on: read what must be there.
    try:
        (results,) = written.glob("results_*.json")
        json.loads(results.read_text(encoding="utf-8"))
        for task, count in rows.items():
            (path,) = written.glob(f"samples_{task}_2*.jsonl")  # a date follows, not a longer name
            text = path.read_bytes()
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
