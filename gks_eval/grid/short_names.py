"""Short names of settings: `short=gks:en;rule=delta`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from gks_eval.errors import UsageError
from gks_eval.method.grammar import VALUED
from gks_eval.method.registry import ROUTERS
from gks_eval.util.paths import is_portable_name

__all__ = ["split_name"]

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]{0,62}[A-Za-z0-9_+-])?")


def split_name(text: str, arguments: Collection[str]) -> tuple[str | None, str]:
    """Return a setting's short name or None, and the text of the setting.

    Args:
        text: One setting as the user wrote it.
        arguments: Names of arguments, which cannot be short names: `gks:en,top_k=2` lacks a `;`.

    Raises:
        UsageError: The name cannot be a folder's name.
    """
    name, equals, setting = text.partition("=")
    name = name.strip()
    plain = ["base", *ROUTERS.names()]
    kind, colon, _ = re.split(r"\s*([:;]|$)", setting.strip(), maxsplit=1)
    is_setting = kind in plain or (kind in VALUED and colon == ":")
    if not equals or name in arguments or not is_setting:
        return None, text
    if re.search(r"[:;]", name):  # the argument of a setting without a name
        return None, text
    if not _NAME.fullmatch(name) or not is_portable_name(name) or name in plain:
        raise UsageError(
            f"setting {text!r}: {name!r} cannot be a short name; use at most 64 letters, digits "
            "and _ . + -, and no word that is a setting itself."
        )
    return name, setting.strip()
