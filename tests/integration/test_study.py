"""The study of the documents, run whole on a tiny model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gks_eval.cli.main import main

FOLDER = Path(__file__).parents[2] / "docs/study"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return ``study(*words)``: exit status of run.py, its commands run in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    script = importlib.import_module("run")

    def run(command: list[str]) -> None:
        monkeypatch.setattr("gks_eval.model.lm.CREATED", 0)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, command

    def started(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        try:
            script.main()
        except SystemExit as ended:
            print(ended.code, file=sys.stderr)
            return ended.code if isinstance(ended.code, int) else 1
        return 0

    monkeypatch.setattr(script, "run", run)
    return started


def test_the_study_runs_whole(
    study: Callable[..., int], tiny_library: Callable[..., Path], tmp_path: Path
) -> None:
    library, other = tiny_library("phi3"), tiny_library("phi3", seed=7)
    output = tmp_path / "my study"
    # Without a group, single tasks stand in the tables of means.
    task = ("--tasks", "gks_demo_goals_en", "--limit", "2")
    assert study(library, output, "--other", other, *task) == 0
    names = {path.name for path in output.iterdir()}
    assert {"results", "tables.md", "changes.png", "routing.png"} <= names
    text = (output / "tables.md").read_text("utf-8")
    means = text.split("\n\n")[0].splitlines()
    assert means[0] == "| setting | gks_demo_goals_en, n = 2 |"
    assert means[2] == "| *guessing* | 50.0 |"
    settings = {line.split(" | ")[0].strip("| ") for line in means[3:]}
    assert len(settings) == 20 + 2  # of four experts: top_k is 1, 3 and 4
    assert f"gks-avg_library-{other.name}" in settings
    assert text.count("| against ") == 4
    for name in (library.name, other.name):
        assert text.count(f"| {name} | none |") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no-such-library", "out"), "no-such-library"),
        (("phi3-mini", "out", "--other", "phi3-mini"), "two libraries are called phi3-mini"),
        (("phi3-mini", "--dry-run"), "output"),
        (("phi3-mini", __file__), "is a file; name a folder"),
        (("phi3-mini", "out", "--launch", "'"), "quotation"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(
    study: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert study(*words) != 0
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


@pytest.mark.model
def test_the_table_of_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled library has starts of its own; losses, which take minutes, are left out."""
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("starts")
    monkeypatch.setattr(script, "mean_loss", lambda _model, rows: float(len(rows)))
    script.main(["smollm2-demo"])
    base, *rows = capsys.readouterr().out.splitlines()
    assert base == "base: loss 10.00, 30 rows"
    left = [row.partition("left ")[2].partition(",")[0] for row in rows]
    assert [row.split()[1] for row in rows] == ["None:", "factors:", "delta:", "orthogonal:"]
    assert left == ["100%", "182%", "130%", "97%"]  # as docs/method.md has them
    assert all("cosine 0.02" in row for row in rows)
