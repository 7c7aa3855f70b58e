"""One sentence in place of a traceback, where lm-eval's own command runs into an error of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

from gks_eval.errors import GksError
from gks_eval.tasklib.blame import blame

__all__ = ["say_errors_under_lm_eval"]

_COMMANDS: Final = ("lm_eval", "lm-eval")


def say_errors_under_lm_eval() -> None:
    """Have `lm_eval` end a `GksError` as a sentence, and name the task of any other exception.

    An exception that comes from a task keeps its traceback; task, item, key and file follow it.
    Programs that use lm-eval as a library keep their tracebacks, and LMEVAL_LOG_LEVEL=DEBUG shows
    this one.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = Path(sys.argv[0] if sys.argv else "").stem
    if program not in _COMMANDS and getattr(spec, "name", "") != "lm_eval.__main__":
        return
    if os.environ.get("LMEVAL_LOG_LEVEL", "").upper() == "DEBUG":
        return
    before = sys.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, GksError):
            hint = "(LMEVAL_LOG_LEVEL=DEBUG shows where)"
            print(f"lm_eval: error: {error} {hint}", file=sys.stderr)
            return
        before(kind, error, trace)
        if (found := blame(error)) is not None:
            print(f"lm_eval: error {found}.", file=sys.stderr)

    sys.excepthook = hook
