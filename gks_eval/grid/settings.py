"""What a grid runs: settings, tasks and output folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.grid.short_names import split_name
from gks_eval.method.setting import Setting, setting_arguments
from gks_eval.util.digest import digest

__all__ = ["Cell", "Grid", "parse_settings", "with_preset"]

# Arguments after `;` that can change between two settings on one loaded base.
_SWAPPABLE: Final = ("library", "scoring", "batch_size")


@dataclass(frozen=True)
class Cell:
    """One setting of a grid.

    Attributes:
        label: Its short name if it has one, else the text that the user wrote.
        slug: The name of its folder.
        setting: The setting.
        others: Further model arguments, of `_SWAPPABLE`.
    """

    label: str
    slug: str
    setting: Setting
    others: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        settings: In the grid's grammar, see `Setting.parse`; `NAME=` before a setting is its short
            name in folders and tables.
        tasks: Names for lm-eval.
        output: Folder with one subfolder per setting.
        library: For all settings that name no other.
        model_arguments: For the model class, shared by all settings.
        evaluation: For `lm_eval.simple_evaluate`: limit, samples, num_fewshot, ...
        include_paths: Further folders of task YAMLs.
        profile: Whether to measure where each setting spends its time.
    """

    settings: Sequence[str]
    tasks: Sequence[str]
    output: Path
    library: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    include_paths: Sequence[str] = ()
    profile: bool = False


def parse_settings(texts: Iterable[str]) -> list[Cell]:
    """Read the settings of a grid.

    Raises:
        UsageError: A setting does not follow the grammar, needs another load of the base, or
            occurs twice.
    """
    cells: list[Cell] = []
    for written in texts:
        name, text = split_name(written, {*setting_arguments(), *_SWAPPABLE})
        setting, others = Setting.parse(text)
        for given in others:
            if given not in _SWAPPABLE:
                known = {*_SWAPPABLE, *setting_arguments()}
                kind = text.partition(";")[0].strip()  # the rest may contain a token
                raise UsageError(
                    f"setting '{kind};{given}=...': {given} cannot change on a loaded base "
                    f"({did_you_mean(given, known)}); give it to the whole grid with --model-args."
                )
        cells.append(Cell(name or text, name or _slug(text), setting, others))
    # Case-insensitive, as some file systems are.
    folders = Counter(cell.slug.lower() for cell in cells)
    if twice := sorted(cell.label for cell in cells if folders[cell.slug.lower()] > 1):
        raise UsageError(f"--settings names {twice[0]} twice; name each setting once.")
    if not cells:
        raise UsageError("--settings is empty; name at least one, such as arrow or gks:avg.")
    return cells


def with_preset(text: str, preset: str) -> str:
    """Return a setting with ``;preset=...`` after it, unless it is ``base`` or has a preset."""
    _, setting = split_name(text, {*setting_arguments(), *_SWAPPABLE})
    kind, *arguments = (part.partition("=")[0].strip() for part in setting.split(";"))
    return text if kind == "base" or "preset" in arguments else f"{text};preset={preset}"


def _slug(text: str) -> str:
    plain = re.sub(r"[:;=]", lambda sign: "_" if sign[0] == ";" else "-", text.strip())
    slug = re.sub(r"[^\w.+-]+", "-", plain, flags=re.ASCII).strip("-.")
    # If other characters than the grammar's were replaced, two texts could have the same name.
    return (
        slug if slug == plain and len(slug) < 100 else f"{slug[:80]}-{digest({'text': text})[:8]}"
    )
