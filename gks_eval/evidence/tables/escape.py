"""Escapes texts from models and data sets for the format in which they are shown."""

from __future__ import annotations

import unicodedata

__all__ = ["csv_text", "latex", "markdown", "plain"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # LaTeX's line end takes a following star or bracket as its argument.
    "*": "{*}",
    "[": "{[}",
    "–": "--",
}
# The wide forms count as formulas in some locales.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# Text between two dollar signs would be set as a formula.
_MARKDOWN = "\\`*_{}[]()<>#+!|~&$"


def plain(text: str) -> str:
    """Return one line without control characters, which could steer a terminal."""
    # Category Cf has the marks that reverse the direction of writing; Cn has U+FFFE and U+FFFF,
    # which XML excludes.
    kept = (
        "" if unicodedata.category(c) in ("Cc", "Cf", "Cs") or c in "\ufffe\uffff" else c
        for c in text.expandtabs(1).replace("\n", " ")
    )
    return "".join(kept)


def markdown(text: str) -> str:
    """Return text that is safe in a table cell of Markdown, and in the HTML made from it."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in plain(text))


def latex(text: str) -> str:
    """Return text that LaTeX sets literally."""
    return "".join(_LATEX.get(c, c) for c in plain(text))


def csv_text(text: str) -> str:
    """Return one line of text that no spreadsheet reads as a formula."""
    line = plain(text)
    return f"'{line}" if line.lstrip()[:1] in _FORMULA else line
