"""The commands that the documentation shows: read out of Markdown, line by line.

A command is one line of a fenced shell block, its continuations joined and its comment dropped, or
an inline code span that starts with one of our programs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
EXTENDING = ROOT / "docs" / "extending.md"
SHELL = ("sh", "bash", "shell")
PROGRAMS = ("gks-eval ", "lm_eval ", "torchrun ", "python -m benchmarks ")


@dataclass(frozen=True)
class Command:
    """One command of a document, as a shell would be given it.

    Attributes:
        file: The document, relative to the root of the project.
        line: Number of its first line in the file.
        text: The command, on one line and without its comment.
        inline: Whether it is a code span in running text, which may leave arguments out.
    """

    file: str
    line: int
    text: str
    inline: bool = False

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def fences(path: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the language, the number of the first line, and the lines of every fenced block."""
    language: str | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if language is None:
            if line.startswith("```"):
                language, first, block = line[3:].strip(), number + 1, list[str]()
        elif line.startswith("```"):
            yield language, first, block
            language = None
        else:
            block.append(line)
    assert language is None, f"{path}: a block is not closed"


def block_commands(path: Path) -> list[Command]:
    """Return the commands of a document's shell blocks, in order."""
    found = []
    for language, first, block in fences(path):
        if language not in SHELL:
            continue
        pending, start = "", first
        for number, line in enumerate(block, start=first):
            start = start if pending else number
            pending += line.rstrip("\\").strip() + " " if line.endswith("\\") else line.strip()
            if line.endswith("\\"):
                continue
            if text := without_comment(pending):
                found.append(Command(_name(path), start, text))
            pending = ""
        assert not pending, f"{path}:{start}: a continuation leads nowhere"
    return found


def inline_commands(path: Path) -> list[Command]:
    """Return the code spans of a document's running text that start with one of our programs."""
    text = path.read_text("utf-8")
    # Blocks are blanked out, so that numbers of lines stay right.
    prose = re.sub(
        r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE
    )
    found = []
    for span in re.finditer(r"`([^`]+)`", prose):
        words = " ".join(span[1].split())
        if words.startswith(PROGRAMS):
            found.append(Command(_name(path), prose.count("\n", 0, span.start()) + 1, words, True))
    return found


def without_comment(line: str) -> str:
    """Drop a shell comment: what follows a ``#`` that starts a word outside quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].rstrip()
    return line.strip()


def _name(path: Path) -> str:
    return path.resolve().relative_to(ROOT).as_posix()


def extending_blocks() -> list[str]:
    """Return the Python of docs/extending.md, in its order."""
    found = fences(EXTENDING)
    return ["\n".join(lines) + "\n" for language, _, lines in found if language == "python"]


def run_extending_blocks() -> dict[str, Any]:
    """Run that Python as one module, and return its names; its router is registered by it."""
    module = ModuleType("my_methods")
    sys.modules[module.__name__] = module
    try:
        exec("\n".join(extending_blocks()), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module.__dict__
