"""``cell.json``: what a finished setting of a grid was asked for, and what it took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonFile
from gks_eval.util.result_files import CELL_FILE

__all__ = ["record_of"]


class _Typed(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _TaskContent(_Typed):
    config: dict[str, Any]
    items: int
    rows: Any
    examples: Any


class _Content(_Typed):
    tasks: dict[str, _TaskContent]
    groups: dict[str, Any]


class _Request(_Typed):
    """Older versions recorded fewer keys; all recorded the ones without a default."""

    setting: dict[str, Any]
    arguments: dict[str, Any]
    library: str | None
    base: dict[str, Any]
    model_arguments: dict[str, Any]
    tasks: list[str]
    evaluation: dict[str, Any]
    folders: dict[str, Any] = Field(default_factory=dict)
    content: _Content = Field(default_factory=lambda: _Content(tasks={}, groups={}))
    plug_ins: dict[str, str] = Field(default_factory=dict)


class _Record(_Typed):
    label: str
    request: _Request
    commit: str | None = None
    spent: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)


def record_of(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished setting; None if its folder does not exist.

    Raises:
        ResultsError: The folder holds no finished setting, or the record cannot be read.
    """
    path = folder / CELL_FILE
    if not path.is_file():
        if folder.exists():
            raise ResultsError(f"{folder} exists but holds no finished setting; move it away.")
        return None
    mend = f"delete {folder} to run it again"
    file = JsonFile(
        "record of a finished setting", ResultsError, mend, limit=1 << 28, constants=True
    )
    return file.read_as(path, _Record).model_dump(exclude_unset=True)
