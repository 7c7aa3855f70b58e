"""What a grid checks before the base is loaded, and the model class on that base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gks_eval.errors import CompatibilityError, LibraryError, UsageError
from gks_eval.grid.settings import Cell, Grid, parse_settings
from gks_eval.library.load import Library, load_library, read_manifest
from gks_eval.library.starts import starts_of, warn_of_shared_starts
from gks_eval.model.base_model import ResolvedBase, content_stamp, resolve_base

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["base_record", "library_name", "make_lm", "prepare"]

Model = TypeVar("Model", bound="GksArrowLM")


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


def library_name(cell: Cell, grid: Grid) -> str:
    """Return the name of a setting's library, whether or not the setting uses it."""
    from gks_eval.model.lm import DEFAULT_LIBRARY

    return cell.others.get("library") or grid.library or DEFAULT_LIBRARY


def _check(
    cells: Sequence[Cell], base: ResolvedBase, grid: Grid
) -> tuple[list[Cell], list[Library | None]]:
    """Load the libraries, and return each setting, checked by its library, and the library."""
    _check_others(cells)
    libraries: dict[str, Library] = {}
    checked: list[Cell] = []
    chosen: list[Library | None] = []
    for cell in cells:
        if not cell.setting.uses_library:
            checked.append(cell)
            chosen.append(None)
            continue
        name = library_name(cell, grid)
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
    _warn_of_shared_starts(checked, chosen)
    return checked, chosen


def _warn_of_shared_starts(cells: Sequence[Cell], libraries: Sequence[Library | None]) -> None:
    # One setting per library is enough; `Attachment.apply` measures each setting.
    measured: set[str] = set()
    for cell, library in zip(cells, libraries, strict=True):
        if library is None or library.content_hash in measured:
            continue
        if starts := starts_of(library, cell.setting):
            measured.add(library.content_hash)
            warn_of_shared_starts(library, starts)


def _check_others(cells: Sequence[Cell]) -> None:
    """Check the arguments of settings that are the model's, before any setting runs.

    Raises:
        UsageError: A value cannot be used.
    """
    from gks_eval.model.lm import GksArrowLM

    for cell in cells:
        try:
            if "scoring" in cell.others:
                GksArrowLM.checked_scoring(cell.others["scoring"])
            if "batch_size" in cell.others:
                GksArrowLM.checked_batch_size(cell.others["batch_size"])
        except UsageError as error:
            raise UsageError(f"setting {cell.label}: {error}") from None


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
