"""The versions that `make test-lowest` installs are the bounds that the package states."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TOOLS = {"pytest", "pytest-xdist", "hypothesis"}


def bounds() -> dict[str, Version]:
    """The lower bounds of what the package and its extras need, `dev` left out."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    needed = text.partition("\ndependencies = [")[2].partition("\ndev = [")[0]
    found: dict[str, Version] = {}
    for name, version in re.findall(r'"([\w.-]+)>=([\w.]+)"', needed):
        bound = found.setdefault(canonicalize_name(name), Version(version))
        assert bound == Version(version), f"{name} has two bounds"
    assert len(found) >= 20
    return found


def pins(file: str) -> dict[str, Version]:
    text = (ROOT / ".ci" / file).read_text("utf-8")
    lines = re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in lines}


def test_the_lowest_versions_are_the_bounds() -> None:
    lowest = pins("lowest.txt")
    assert {name: pin for name, pin in lowest.items() if name not in TOOLS} == bounds()


def test_no_bound_is_above_what_the_tests_run_with() -> None:
    known = pins("constraints.txt")
    for name, bound in bounds().items():
        assert known[name] >= bound, name


def test_contributing_gives_a_reason_for_every_bound() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = text.partition("## Why each lower bound stands")[2].splitlines()
    table = "\n".join(row.split("|")[1].lower() for row in rows if row.startswith("|"))
    for name, bound in bounds().items():
        said = re.search(rf"\b{re.escape(name)} ([\d.]+)", table)
        assert said, f"CONTRIBUTING.md does not say why {name} {bound}"
        assert Version(said[1]) == bound, name
