"""`gks-eval controls` on a tiny library: run, shown in every form, resumed, refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import save_random_vectors

from gks_eval.cli.controls import _asked
from gks_eval.cli.main import main
from gks_eval.errors import ResultsError
from gks_eval.evidence.question import CONTROLS_FILE, ControlsFile
from gks_eval.evidence.report.build import build_page
from gks_eval.evidence.runs import find_runs
from gks_eval.grid import Grid
from gks_eval.library.load import load_library
from gks_eval.util.files import write_text

TASKS = ("gks_demo_goals_en", "gks_demo_science_de")


@pytest.mark.filterwarnings("default")
def test_the_command(
    tmp_path: Path,
    tiny_library: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*more: str, code: int = 0) -> tuple[str, str]:
        command = ["controls", "--library", str(tiny_library()), "--tasks", ",".join(TASKS)]
        command += ["--treatment", "gks:avg", "--output", "out", "--limit", "4", *more]
        monkeypatch.setattr(sys, "argv", ["gks-eval", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.err
        return printed.out, printed.err

    planned, _ = run("--seeds", "1", "--dry-run")
    assert "Settings: 19 to run, 0 finished." in planned
    assert "does gks:avg score higher than each of 15 controls" in planned
    assert not Path("out").exists()
    # A task that is not there fixes no question.
    run("--seeds", "1", "--tasks", "gks_demo_goals_enn", code=2)
    assert not Path("out/controls.json").exists()

    shown, _ = run("--seeds", "1")
    assert "gks:avg and its controls" in shown
    assert "Question, fixed before the run: " in shown
    content = json.loads(Path("out/controls.json").read_text("utf-8"))
    question, finding = content["question"], content["finding"]
    assert question["evaluation"] == {"limit": "4"}
    assert [task["name"] for task in finding["tasks"]] == list(TASKS)
    assert [task["weight"] for task in finding["tasks"]] == [0.5, 0.5]
    assert [claim["role"] for claim in finding["claims"]] == ["subtraction", "routing", "library"]
    _as_a_loop_has_it(Path("out"), question, finding)

    text, kept = run("--seeds", "1", "--format", "json")
    assert json.loads(text) == content
    assert kept.count(": kept") == 19
    text, _ = run("--seeds", "1", "--format", "markdown")
    assert "| no subtraction | " in text
    _, refused = run("--seeds", "2", code=7)
    assert "out/controls.json holds another question (other seeds, controls)" in refused

    page = build_page(find_runs(["out"]), [Path("out")])
    assert '<section id="controls"' in page
    assert finding["claims"][0]["sentence"] in page


def _as_a_loop_has_it(folder: Path, question: Any, finding: Any) -> None:
    """The differences from the samples files, in plain loops."""

    def scores(setting: str) -> list[float]:
        name = setting.replace(";", "_").replace(":", "-").replace("=", "-")
        found = []
        for task in TASKS:
            (file,) = (folder / name).glob(f"samples_{task}_*.jsonl")
            rows = sorted(map(json.loads, file.read_text("utf-8").splitlines()), key=_doc_id)
            found += [row["acc"] for row in rows]
        return found

    treatment = scores(question["treatment"])
    assert finding["score"] == pytest.approx(sum(treatment) / 8)
    for control, contrast in zip(question["controls"], finding["contrasts"], strict=True):
        assert contrast["name"] == control["name"]
        if control["over"] == "draws":
            (setting,) = control["settings"]
            expected = sum(t - c for t, c in zip(treatment, scores(setting), strict=True)) / 8
            assert contrast["difference"] == pytest.approx(expected), control["name"]
            assert contrast["score"] == pytest.approx(sum(scores(setting)) / 8)


def _doc_id(row: Any) -> int:
    return int(row["doc_id"])


def test_changed_vectors_of_the_router_are_another_question(
    tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    folder = tmp_path / "library"
    shutil.copytree(tiny_library(), folder)
    save_random_vectors(folder, "phatgoose")
    treatment = "phatgoose:avg;preset=exact"
    grid = Grid([treatment], ["gks_demo_goals_en"], tmp_path / "out", library=str(folder))
    question, _ = _asked(grid, 1, 0.02)
    assert question.library_hash != load_library(str(folder)).content_hash
    write_text(grid.output / CONTROLS_FILE, ControlsFile(question=question).to_json())
    assert _asked(grid, 1, 0.02)[0] == question
    save_random_vectors(folder, "phatgoose", seed=1)
    with pytest.raises(ResultsError, match=r"another question \(other library hash\)"):
        _asked(grid, 1, 0.02)
