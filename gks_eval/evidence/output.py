"""Writing what the wing makes: aside first, then renamed, so that nothing half-written is seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gks_eval.errors import ResourceError

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all.

    Raises:
        ResourceError: The folder cannot be written to or is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        # mkstemp makes files that only the owner can read.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path} cannot be written: {error.strerror}.") from None
