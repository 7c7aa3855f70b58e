"""docs/python.md: every public name is there, and every block prints the output shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from readme_blocks import ROOT, fences

import gks_eval

PAGE = ROOT / "docs/python.md"
MARK = "@@ next block"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.])")


def parts() -> dict[str, list[tuple[str, str]]]:
    """The blocks of each part of the page, each with the output shown below it."""
    starts = {
        number: line.removeprefix("## ")
        for number, line in enumerate(PAGE.read_text("utf-8").splitlines(), start=1)
        if line.startswith("## ")
    }
    found: dict[str, list[tuple[str, str]]] = {title: [] for title in starts.values()}
    for language, first, lines in fences(PAGE):
        blocks = found[starts[max(number for number in starts if number < first)]]
        text = "\n".join(lines)
        if language == "python":
            blocks.append((text, ""))
        else:
            assert language == "text", f"{PAGE}:{first}: neither code nor its output"
            blocks[-1] = (blocks[-1][0], text)
    return found


@pytest.mark.parametrize(
    ("part", "tolerance"),
    [
        ("Without a base model", 0.0),
        # Another CPU may round an item or two of the 20 to the other side; no other figure differs.
        pytest.param("With a base model", 0.15, marks=pytest.mark.model),
    ],
)
def test_the_blocks_print_the_output_shown(part: str, tolerance: float, tmp_path: Path) -> None:
    blocks = parts()[part]
    code = f"\nprint({MARK!r})\n".join(block for block, _ in blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{MARK}\n")
    for (block, shown), output in zip(blocks, printed, strict=True):
        assert NUMBER.sub("#", output.rstrip("\n")) == NUMBER.sub("#", shown), block
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (output, shown)]
        evaluates = "limit=20" in block or "find_runs(" in block
        allowed = tolerance if evaluates else 0.0
        assert numbers[0] == pytest.approx(numbers[1], abs=allowed), block


def test_there_are_no_other_parts() -> None:
    assert list(parts()) == ["Without a base model", "With a base model"]


def test_the_page_has_every_public_name() -> None:
    named = set(re.findall(r"[A-Za-z_]\w*", PAGE.read_text("utf-8")))
    assert set(gks_eval.__all__) <= named
