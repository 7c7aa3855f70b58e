"""Digests of functions that name and source alone do not tell apart."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gks_eval.tasklib.task_content import code_digest

OWN = """
from functools import partial
from made_elsewhere import Text, made, text

first = lambda row: "a" + row["q"]
second = lambda row: "b" + row["q"]
chosen = {chosen}
"""
ELSEWHERE = """
class Text:
    def __init__(self, start):
        self.start, self.itself = start, self

    def __call__(self, row):
        return self.start + row["q"]

def text(row, start=""):
    return start + row["q"]

def made(start):
    def inner(row):
        return start + row["q"] if row else inner({"q": start})
    return inner
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "made_elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_elsewhere", raising=False)
    return tmp_path


def digest_of(folder: Path, chosen: str, name: str = "chosen") -> str:
    """Write own.py, load it as lm-eval does, and return the digest of one of its functions."""
    path = folder / "own.py"
    path.write_text(OWN.format(chosen=chosen))
    spec = importlib.util.spec_from_file_location(str(path.with_suffix("")), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    try:
        return code_digest(getattr(module, name))
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize(
    "chosen",
    [
        "partial(text, start='{}')",
        "partial(Text('{}'))",
        "made('{}')",
        "partial(made('{}'), {{}})",
        "Text('{}')",
        "Text(made('{}'))",
        "Text(partial(text, start={{'{}'}}))",
    ],
)
def test_what_a_function_was_made_with_counts(folder: Path, chosen: str) -> None:
    first, second = (digest_of(folder, chosen.format(start)) for start in "ab")
    assert first != second
    assert digest_of(folder, chosen.format("a")) == first


def test_lambdas_of_one_module_are_told_apart(folder: Path) -> None:
    assert digest_of(folder, "None", "first") != digest_of(folder, "None", "second")
    assert digest_of(folder, "None", "first") == digest_of(folder, "None  # a comment", "first")


def test_a_digest_is_the_same_in_another_process(folder: Path) -> None:
    (folder / "own.py").write_text(OWN.format(chosen="Text([made({'x', 'y'}), object(), text])"))
    code = "import own, gks_eval.tasklib.task_content as c; print(c.code_digest(own.chosen))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path]), "PYTHONHASHSEED": seed},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
