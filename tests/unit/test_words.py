"""Words and phrases that made readers stop, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / "gks_eval").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("*.md"),
]
INSTEAD = {
    r"\banew\b": "again",
    r"\bbeside\b": "next to",
    r"\bat hand\b": "say where it is",
    r"\bfor want of\b": "because ... is missing",
    r"\bthere is no such\b": "... does not exist",
    r"\bmakes no sense\b": "is invalid",
    r"\b(?:is|are|be|was) told\b": "is reported",
    r"\btold apart\b": "distinguished",
    r"\bone (?:line|row|file|pass|number|product|task) an? ": "one ... per ...",
    r"\bseconds? a (?:call|token|item|request)\b": "seconds per ...",
}


@pytest.mark.parametrize("pattern", INSTEAD)
def test_plain_words(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, f"write {INSTEAD[pattern]!r}"
