"""Running all settings of a grid on one loaded base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gks_eval.errors import CompatibilityError, LibraryError, ResourceError, UsageError
from gks_eval.grid.cell import cell_request, evaluate_cell
from gks_eval.grid.kept import check_commit, finished
from gks_eval.grid.settings import Cell, Grid, parse_settings
from gks_eval.grid.task_index import grid_content, task_manager
from gks_eval.library.load import Library, load_library, read_manifest
from gks_eval.model.base_model import ResolvedBase, content_stamp, resolve_base
from gks_eval.tasklib.local_data import local_data
from gks_eval.util.files import exclusive
from gks_eval.util.grid_order import write_order
from gks_eval.util.process_group import ProcessGroup

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["base_record", "make_lm", "prepare", "run_grid"]

Model = TypeVar("Model", bound="GksArrowLM")


def run_grid(grid: Grid, on_cell: Callable[[Cell, str], None] | None = None) -> list[Path]:
    """Run every setting that is not finished.

    Args:
        grid: What to run.
        on_cell: Called with a cell and ``"kept"``, ``"running"`` or ``"done"``.

    Returns:
        The settings' folders, in order.

    Raises:
        UsageError: A setting cannot be run; all are checked before the base is loaded.
        ResultsError: A folder holds a finished cell of other arguments, or of tasks or data that
            have changed since; all are checked before the base is loaded.
        ResourceError: Another process writes to the same output, or a result cannot be written.
        GksError: As `GksArrowLM`.
    """
    group = ProcessGroup()
    cells, libraries, base = prepare(grid)
    lock = exclusive(grid.output / ".lock") if group.is_main else nullcontext(True)
    with lock as held, local_data():
        if not held:
            raise ResourceError(
                f"another grid is writing to {grid.output}; wait for it, or name another --output."
            )
        if group.is_main:
            write_order(grid.output, [cell.slug for cell in cells])
        return _run_cells(cells, libraries, base, grid, group, on_cell or _silent)


def prepare(grid: Grid) -> tuple[list[Cell], list[Library | None], ResolvedBase]:
    """Check everything that can be checked before the base is loaded.

    Returns:
        The settings, the library of each, and the base.

    Raises:
        UsageError: A setting cannot be run.
        GksError: A library cannot be read.
    """
    if "library" in grid.model_arguments:
        raise UsageError("--model-args: name the library with --library instead.")
    cells = parse_settings(grid.settings)
    base = _base(grid)
    return *_check(cells, base, grid), base


def _silent(_cell: Cell, _state: str) -> None:
    pass


def _library_name(cell: Cell, grid: Grid) -> str:
    from gks_eval.model.lm import DEFAULT_LIBRARY

    return cell.others.get("library") or grid.library or DEFAULT_LIBRARY


def _check(
    cells: Sequence[Cell], base: ResolvedBase, grid: Grid
) -> tuple[list[Cell], list[Library | None]]:
    """Load the libraries, and return each setting, checked by its library, and the library."""
    libraries: dict[str, Library] = {}
    checked: list[Cell] = []
    chosen: list[Library | None] = []
    for cell in cells:
        if not cell.setting.uses_library:
            checked.append(cell)
            chosen.append(None)
            continue
        name = _library_name(cell, grid)
        if name not in libraries:
            libraries[name] = load_library(name)
        try:
            setting = libraries[name].check(cell.setting)
        except (CompatibilityError, LibraryError, UsageError) as error:
            raise type(error)(f"setting {cell.label}: {error}") from None
        checked.append(replace(cell, setting=setting))
        made_for = libraries[name].config.base_model
        if "pretrained" not in grid.model_arguments and made_for != base.name:
            raise UsageError(
                f"setting {cell.label!r}: library {name} was made for {made_for}, and the grid "
                f"runs on {base.name}; name one base for both with --pretrained."
            )
        chosen.append(libraries[name])
    return checked, chosen


def _run_cells(
    cells: Sequence[Cell],
    libraries: Sequence[Library | None],
    base: ResolvedBase,
    grid: Grid,
    group: ProcessGroup,
    on_cell: Callable[[Cell, str], None],
) -> list[Path]:
    from gks_eval.model.lm import GksArrowLM

    tasks = task_manager(grid.tasks, grid.include_paths)
    content = grid_content(tasks, grid)
    folders = [grid.output / cell.slug for cell in cells]
    recorded = base_record(base, grid)
    requests = [
        cell_request(cell, library, recorded, content, grid)
        for cell, library in zip(cells, libraries, strict=True)
    ]
    done = group.agree(finished(folders, requests))
    lm: GksArrowLM | None = None
    for cell, library, request, is_done in zip(cells, libraries, requests, done, strict=True):
        if is_done:
            on_cell(cell, "kept")
            continue
        on_cell(cell, "running")
        if lm is None:
            arguments = cell.setting.arguments()
            lm = make_lm(GksArrowLM, arguments, _library_name(cell, grid), base, grid)
            if group.is_main:
                kept = [folder for folder, there in zip(folders, done, strict=True) if there]
                check_commit(kept, getattr(lm.config, "_commit_hash", None))
        _swap(lm, cell, library, grid)
        evaluate_cell(lm, tasks, cell, request, grid, group)
        on_cell(cell, "done")
    group.wait()  # until process 0 has written its results
    return folders


def make_lm(
    kind: type[Model],
    setting: Mapping[str, Any],
    library: str | None,
    base: ResolvedBase,
    grid: Grid,
) -> Model:
    """Make the model class with the grid's base, whichever setting runs first.

    Args:
        kind: `GksArrowLM` or a subclass.
        setting: Arguments of the first setting.
        library: Its library's name; None if it needs none.
        base: As `prepare` returns it.
        grid: The grid.
    """
    arguments: dict[str, Any] = {"pretrained": base.name, **grid.model_arguments, **setting}
    if base.revision:
        arguments.setdefault("revision", base.revision)
    if not {"load_in_4bit", "load_in_8bit"} & set(arguments):
        switch = "load_in_8bit" if base.quantization == "int8" else "load_in_4bit"
        arguments[switch] = base.quantization != "none"
    if library is not None:
        arguments["library"] = library
    return kind(**arguments)


def _swap(lm: GksArrowLM, cell: Cell, library: Library | None, grid: Grid) -> None:
    lm.apply(cell.setting, library)
    lm.choose_scoring(cell.others.get("scoring") or grid.model_arguments.get("scoring"))
    batch_size = cell.others.get("batch_size") or grid.model_arguments.get("batch_size")
    if batch_size is not None:
        lm.choose_batch_size(batch_size)


def _base(grid: Grid) -> ResolvedBase:
    """Return the base that the grid's library and arguments name, for all settings."""
    from gks_eval.model.lm import DEFAULT_LIBRARY

    pretrained = grid.model_arguments.get("pretrained")
    name = None if pretrained is None else str(pretrained)
    if grid.library is None and name is not None:
        return resolve_base(name)
    _, manifest = read_manifest(grid.library or DEFAULT_LIBRARY)
    return resolve_base(name, manifest=manifest)


def base_record(base: ResolvedBase, grid: Grid) -> dict[str, Any]:
    """Return the base's part of a cell's request, see `gks_eval.grid.cell.cell_request`."""
    record = {"name": base.name, "content": content_stamp(base.source)}
    if grid.library is None and "pretrained" in grid.model_arguments:
        return record
    return record | {"revision": base.revision, "quantization": base.quantization}
