"""The order of a grid's settings, recorded in its output folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gks_eval.util.json_file import read_or_empty

__all__ = ["read_order", "write_order"]

_FILE: Final = "grid.json"


def read_order(folder: Path) -> list[str]:
    """Return the settings' folders in order; empty if no order is recorded."""
    found = read_or_empty(folder / _FILE).get("settings")
    return [str(name) for name in found] if isinstance(found, list) else []


def write_order(folder: Path, settings: Sequence[str]) -> None:
    """Record the order of a command's settings.

    If the command omits recorded settings, its own follow theirs, so that a later setting does not
    become the baseline of a comparison.
    """
    from gks_eval.util.files import write_text  # not needed by readers

    before = read_order(folder)
    whole = set(before) <= set(settings)
    order = list(settings) if whole else list(dict.fromkeys([*before, *settings]))
    if order != before:
        write_text(folder / _FILE, json.dumps({"settings": order}, indent=1) + "\n")
