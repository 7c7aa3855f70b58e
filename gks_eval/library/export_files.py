"""The files of an export: what it consists of, and whether a folder still holds all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import LibraryError, UsageError
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import WEIGHTS_FILE
from gks_eval.util.files import check_writable, disk_errors, sha256_of
from gks_eval.util.paths import MANIFEST
from gks_eval.util.yaml import load_typed

__all__ = ["EXPORTED", "FILES", "held_files", "holds_files", "written_files"]

EXPORTED: Final = "exported"
"""Key of the export's record in the manifest's provenance."""
FILES: Final = "files"
"""Key of the SHA-256 of all other files, by path, in the manifest's provenance."""
# Fields of the record that can differ between two runs of the same command.
_RUN: Final = ("versions", "relative_error")
_MEND: Final = "delete the folder to export again, or give another one"


def written_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files in a folder except the manifest, by path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: sha256_of(path) for name, path in named.items() if name != MANIFEST}


def holds_files(folder: Path) -> bool:
    """Return whether an output folder has any content.

    Raises:
        UsageError: It is a file.
        ResourceError: It cannot be written.
    """
    check_writable(folder.parent)
    with disk_errors(folder):
        if folder.is_file():
            raise UsageError(f"{folder} is a file; name a folder.")
        return folder.is_dir() and any(folder.iterdir())


def held_files(folder: Path, expected: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Check that a folder holds a complete and unchanged export.

    Args:
        folder: A folder with files.
        expected: The manifest that the export would write, without hashes.
        names: All other files of the export, by path in the folder.

    Returns:
        The names, sorted.

    Raises:
        LibraryError: It holds something else, or a file is missing or changed.
        ConfigError: Its manifest has faults.
    """
    manifest, names = folder / MANIFEST, tuple(sorted(names))
    config = load_typed(manifest, LibraryConfig) if manifest.is_file() else None
    held = config.provenance.get(EXPORTED) if config else None
    if config is None or not isinstance(held, dict):
        raise LibraryError(
            f"{folder} is not empty and holds no export; give another folder, or an empty one."
        )
    same = {key: value for key, value in held.items() if key not in _RUN}
    if same != expected["provenance"][EXPORTED] or config.license != expected.get("license"):
        raise LibraryError(
            f"{folder} holds another export ({held.get('setting')!s:.200}); give another "
            "folder, or delete this one."
        )
    hashes = config.provenance.get(FILES)
    if not isinstance(hashes, dict) or hashes.keys() != set(names):
        raise LibraryError(f"{manifest} does not list the files of this export; {_MEND}.")
    for name in names:
        if not (folder / name).is_file():
            raise LibraryError(f"{folder / name} is missing from the export; {_MEND}.")
        if sha256_of(folder / name) != hashes[name]:
            raise LibraryError(f"{folder / name} has changed since the export; {_MEND}.")
    weights = {
        f"experts/{name}": hashes[(Path(place) / WEIGHTS_FILE).as_posix()]
        for name, place in expected["experts"].items()
    }
    wanted = {**expected, "hashes": weights, "provenance": config.provenance}
    if config != LibraryConfig.model_validate(wanted):
        raise LibraryError(f"{manifest} has changed since the export; {_MEND}.")
    return names
