"""Every error that a user can meet, with the exit code of `gks-eval`.

::

    GksError                    1
    ├── UsageError              2   an argument that cannot be understood or carried out
    ├── ConfigError             3   faults of a typed file: library.yaml, recipe, policy
    ├── LibraryError            4   a library or adapter that is missing, broken or unsafe
    │   └── CompatibilityError  5   adapters that do not fit each other or the base model
    ├── DataError               6   a data set, task or training file with unusable rows
    ├── ResultsError            7   results or samples that cannot be read or compared
    ├── HubError                8   the hub cannot be reached or lacks the file
    └── ResourceError           9   disk, memory or device does not suffice

A message is one sentence that names the file or argument and says how to fix it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "CompatibilityError",
    "ConfigError",
    "DataError",
    "GksError",
    "HubError",
    "LibraryError",
    "ResourceError",
    "ResultsError",
    "UsageError",
    "did_you_mean",
    "one_line",
    "reason",
    "whole_reason",
]

_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def one_line(text: str) -> str:
    """Return a text for a terminal: line breaks as spaces, other control characters escaped.

    A message may quote names and texts from files of unknown origin.
    """
    joined = _BREAK.sub(" ", text.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)


def reason(error: BaseException, last: bool = False) -> str:
    """Return the first line of another library's error, or its type where it has no text.

    Args:
        error: The error.
        last: Whether the last line says more, as under Ray, where a traceback comes first.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if last else 0].strip(" .")


def whole_reason(error: BaseException) -> str:
    """Return another library's error on one line, or its type where it has no text."""
    return " ".join(str(error).split()).rstrip(" .") or type(error).__name__


class GksError(Exception):
    """Base of all errors that gks_eval raises on purpose; the message is one printable line."""

    exit_code: int = 1

    def __init__(self, sentence: str = "") -> None:
        line = one_line(sentence)
        # After the question mark of `did_you_mean`, no full stop follows.
        super().__init__(line[:-1] if line.endswith("'?.") else line)


class UsageError(GksError):
    """An argument that cannot be understood or carried out."""

    exit_code = 2


class ConfigError(GksError):
    """Faults of a typed file; the message lists all of them, each with its line."""

    exit_code = 3


class LibraryError(GksError):
    """A library or adapter that is missing, broken or unsafe to read."""

    exit_code = 4


class CompatibilityError(LibraryError):
    """Adapters that do not fit each other, the rule asked for, or the base model."""

    exit_code = 5


class DataError(GksError):
    """A data set, task or training file with unusable rows."""

    exit_code = 6


class ResultsError(GksError):
    """Results or samples that cannot be read or compared."""

    exit_code = 7


class HubError(GksError):
    """The hub cannot be reached, or it does not have what was asked for."""

    exit_code = 8


class ResourceError(GksError):
    """Disk, memory or device does not suffice."""

    exit_code = 9


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say the nearest known name, or all of them, as the tail of an error sentence.

    Args:
        name: What the user wrote.
        known: The names that would have been right.

    Returns:
        ``"did you mean 'top_k'?"`` when one is near, else ``"known: a, b, c"``.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
