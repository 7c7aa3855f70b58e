"""Errors of lm-eval, each as one sentence."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from gks_eval.errors import DataError, GksError, UsageError, whole_reason

__all__ = ["lm_eval_errors"]

# How lm-eval reports unknown names, missing files and values that it cannot use.
_MISTAKES = (ValueError, OSError, LookupError, TypeError, AssertionError)
# A disk or folder that fails in between is not such a mistake; `main` reports it.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def lm_eval_errors() -> Iterator[None]:
    """Turn errors of lm-eval, and of the tasks and data sets below it, into one sentence.

    Raises:
        DataError: A task's YAML, functions or rows are wrong; the sentence names the task.
        UsageError: lm-eval was given something that it cannot use.
        GksError: It stopped for another reason. Errors of this package pass unchanged.
    """
    try:
        yield
    except GksError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        if os.environ.get("LMEVAL_LOG_LEVEL", "").upper() == "DEBUG":
            traceback.print_exc()
        from gks_eval.tasklib.blame import blame

        hint = "(LMEVAL_LOG_LEVEL=DEBUG shows where)"
        if (found := blame(error)) is not None:
            raise DataError(f"lm-eval stopped {found} {hint}") from error
        kind = UsageError if isinstance(error, _MISTAKES) else GksError
        raise kind(f"lm-eval stopped: {whole_reason(error)} {hint}") from error
