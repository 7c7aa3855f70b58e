"""The CI workflows: they parse, and what they run is there."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))


def jobs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in WORKFLOWS:
        content = yaml.safe_load(path.read_text("utf-8"))
        assert content[True], f"{path.name} says not when it runs"  # YAML 1.1 reads `on` as true
        found |= content["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def check(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert set(words[1:]) <= targets(), command
    elif words[:3] == ["python", "-m", "pytest"]:
        for path in words[3:]:
            assert (ROOT / path).exists(), path
    else:
        assert words[:4] == ["python", "-m", "pip", "install"], command
        flags = dict(pairwise(words))
        assert (ROOT / flags["-c"]).is_file()
        named = re.fullmatch(r"\.\[([\w,]+)\]", flags["-e"])
        assert named, command
        assert set(named[1].split(",")) <= extras()


@pytest.mark.parametrize("name", jobs())
def test_every_command_of_a_job_is_there(name: str) -> None:
    job = jobs()[name]
    assert job["runs-on"]
    assert job["timeout-minutes"] <= 60
    assert commands(job) or name == "pages"  # which only publishes what `docs` built
    for command in commands(job):
        check(command)
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert "@" in step.get("uses", "@")


@pytest.mark.parametrize(
    "command", ["make tset", "python -m pytest tests/nothing", "pip install -c x -e .[evidence]"]
)
def test_a_misspelt_command_is_noticed(command: str) -> None:
    with pytest.raises(AssertionError):
        check(command)


def test_three_systems_run_the_portable_tests_without_make() -> None:
    portable = jobs()["portable"]
    assert portable["runs-on"] == "${{ matrix.os }}"
    matrix = portable["strategy"]["matrix"]
    assert matrix == {
        "os": ["ubuntu-latest", "macos-latest", "windows-latest"],
        "python": ["3.10", "3.13"],
    }
    assert all(command.startswith("python -m ") for command in commands(portable))
    assert "tests/unit/test_portable.py" in commands(portable)[-1].split()


def test_lint_runs_once() -> None:
    assert [name for name, job in jobs().items() if "make lint" in commands(job)] == ["lint"]
