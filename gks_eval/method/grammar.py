"""The words of a setting: ``KIND[:VALUE]`` and lists of languages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.method.registry import MERGES, ROUTERS

__all__ = ["EXPERT", "EXPERTS", "MERGE", "VALUED", "languages", "read_kind", "word"]

EXPERT: Final = "expert:"
EXPERTS: Final = "experts"
"""In the place of languages: what is subtracted is the mean of all experts."""
MERGE: Final = "merge:"
VALUED: Final = ("gks", "expert", "merge")
"""Kinds of settings that need a value after a colon."""


def word(value: object) -> str:
    """Return an argument as text; lm-eval's command line turns ``none`` into None."""
    return "none" if value is None else str(value).strip()


def languages(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the general adapters that ``subtract=`` names.

    Raises:
        UsageError: The value is not a list of different names.
    """
    if isinstance(value, Iterable) and not isinstance(value, str):
        parts = [word(part) for part in value]
    else:
        parts = word(value).split("+")
    names = tuple(part.strip() for part in parts)
    if names == ("none",) or not names:
        return ()
    if "" in names or "none" in names:
        raise UsageError(f"subtract={value} is not a list of languages such as en+de.")
    if len(set(names)) < len(names) or ("avg" in names and len(names) > 1):
        raise UsageError(
            f"subtract={value} counts a general adapter twice; name each once, or avg alone."
        )
    if EXPERTS in names and len(names) > 1:
        raise UsageError(f"subtract={value} mixes experts and languages; name experts alone.")
    return names


def read_kind(head: str, text: str) -> dict[str, str]:
    """Return the arguments that a setting's first word stands for.

    Args:
        head: The word, such as ``gks:en+de``.
        text: The whole setting, for messages.

    Raises:
        UsageError: The word is not known, or its value is missing.
    """
    kind, colon, value = (part.strip() for part in head.partition(":"))
    needed = {
        "gks": "languages, as gks:en+de",
        "expert": "an expert's name",
        "merge": f"a merge: {', '.join(MERGES.names())}",
    }
    if kind in needed and not value:
        raise UsageError(f"setting {text!r}: {kind}: needs {needed[kind]}.")
    if kind == "base":
        if colon:
            raise UsageError(f"setting {text!r}: {kind} takes nothing after a colon.")
        return {"router": "none", "subtract": "none"}
    if kind == "expert":
        if value == "none":
            raise UsageError(
                f"setting {text!r}: {value} is no expert; name an expert of the library."
            )
        return {"router": f"{EXPERT}{value}", "subtract": "none"}
    if kind == "merge":
        if value not in MERGES:
            near = did_you_mean(value, MERGES.names())
            raise UsageError(f"setting {text!r}: merge {value!r} is unknown; {near}.")
        return {"router": f"{MERGE}{value}", "subtract": "none"}
    if kind == "gks" or kind in ROUTERS:
        router = "arrow" if kind == "gks" else kind
        if value == "none":
            raise UsageError(f"setting {text!r}: to subtract nothing, write {router}.")
        if colon and not value:
            raise UsageError(f"setting {text!r}: {kind}: needs languages, as {kind}:en+de.")
        return {"router": router, "subtract": value or "none"}
    known = ["base", *VALUED, *ROUTERS.names()]
    if "=" in kind:  # an argument behind a comma; its value may be a token and is not shown
        name = re.split(r"[,\s]", kind.partition("=")[0])[-1]
        raise UsageError(
            f"setting '...{name}=...' has no kind; write arguments after ';', as in "
            "arrow;top_k=1, and a short name before a setting, as in short=gks:en."
        )
    raise UsageError(f"setting {text!r}: {kind!r} is unknown; {did_you_mean(kind, known)}.")
