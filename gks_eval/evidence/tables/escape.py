"""Texts from models and data sets made harmless for the place where they are shown."""

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
    # A line's end takes a following star or bracket for its own argument.
    "*": "{*}",
    "[": "{[}",
    "–": "--",
}
# The wide forms count as formulas in some locales.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
# A pair of dollar signs would set what stands between them as a formula.
_MARKDOWN = "\\`*_{}[]()<>#+!|~&$"


def plain(text: str) -> str:
    """Return one line without control characters, which could steer a terminal."""
    # Cf holds the marks that turn the direction of writing around.
    kept = (
        "" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in text.expandtabs(1).replace("\n", " ")
    )
    return "".join(kept)


def markdown(text: str) -> str:
    """Return text that Markdown and the HTML in it leave alone, fit for a table's cell."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in plain(text))


def latex(text: str) -> str:
    """Return text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(c, c) for c in plain(text))


def csv_text(text: str) -> str:
    """Return one line of text that no spreadsheet takes for a formula."""
    line = plain(text)
    return f"'{line}" if line.lstrip()[:1] in _FORMULA else line
