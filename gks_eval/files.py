"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from gks_eval.errors import ResourceError

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text beside `path` and rename it there, so that no reader sees half of it.

    Raises:
        ResourceError: The folder cannot be written to, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ResourceError(f"{path} cannot be written: {error.strerror}.") from None
