"""Paths of the package's data (tasks, bundled libraries) and names for folders.

In a wheel the data are in ``gks_eval/_data/``, in a checkout next to the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from gks_eval.errors import UsageError

__all__ = [
    "MANIFEST",
    "RECIPE",
    "adapters_dir",
    "bundled",
    "cache_dir",
    "is_portable_name",
    "task_folders",
    "tasks_dir",
    "unportable",
]

# Files of a library's folder.
MANIFEST: Final = "library.yaml"
RECIPE: Final = "recipe.yaml"

_PACKAGE = Path(__file__).resolve().parents[1]

_NOT_ON_WINDOWS: Final = re.compile(
    r"(?i:con|prn|aux|nul|conin\$|conout\$|com[\d¹²³]|lpt[\d¹²³]) *(?:\..*)?"  # devices
    r"|.*[<>:\"/\\|?*\x00-\x1f].*"
    r"|.*[. ]",
    re.DOTALL,
)


def is_portable_name(name: str) -> bool:
    """Return whether a file or folder can have this name on Linux, macOS and Windows."""
    return bool(name) and not _NOT_ON_WINDOWS.fullmatch(name)


def unportable(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that cannot be a folder next to the others on every system, and why."""
    seen: set[str] = set()
    for name in names:
        if not is_portable_name(name):
            yield name, "cannot be a folder on Windows"
        elif name.casefold() in seen:
            yield name, "would share a folder with another one, since Windows and macOS ignore case"
        seen.add(name.casefold())


def _data_dir(name: str) -> Path:
    bundled = _PACKAGE / "_data" / name
    return bundled if bundled.is_dir() else _PACKAGE.parent / name


def tasks_dir() -> Path:
    """Return the folder to hand to lm-eval's ``--include_path``."""
    return _data_dir("tasks")


def task_folders(further: Sequence[str], flag: str) -> list[str]:
    """Return our task folder followed by `further`, the folders given with `flag`.

    Raises:
        UsageError: A folder does not exist; lm-eval would ignore it.
    """
    for folder in further:
        if not Path(folder).is_dir():
            raise UsageError(f"{flag} {folder} is not a folder; name one with task YAMLs.")
    return [str(tasks_dir()), *further]


def adapters_dir() -> Path:
    """Return the folder of the bundled libraries, one sub-folder per library."""
    return _data_dir("adapters")


def bundled(file: str) -> list[str]:
    """Return the sorted names of the bundled libraries that contain `file`."""
    return sorted(path.parent.name for path in adapters_dir().glob(f"*/{file}"))


def cache_dir() -> Path:
    """Return the cache folder; everything in it can be made again.

    ``GKS_EVAL_CACHE``, else ``XDG_CACHE_HOME/gks_eval``, else ``~/.cache/gks_eval``.
    """
    if own := os.environ.get("GKS_EVAL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gks_eval"
