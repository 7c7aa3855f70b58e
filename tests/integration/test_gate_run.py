"""`gks-eval gate --run` as users run it: against a grid's results, killed, and with bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gks_eval.cli.main import main
from gks_eval.evidence.staged import StagedGate
from gks_eval.grid import Grid, run_grid

TASKS = ["gks_demo_goals_en", "gks_demo_science_de"]
COMMAND = [sys.executable, "-c", "from gks_eval.cli.main import main; main()"]
ITEMS = 40
DTYPE = ["--model-args", "dtype=float32"]
LOOSE = "min_pairs: 3\nmax_drop: 0.5\n"


def numbers(folder: Path) -> dict[str, Any]:
    """Scores of every sample, by task and item, to the digits that no batch shape changes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[task] = {
            row["doc_id"]: (
                row["doc_hash"],
                row["acc"],
                [f"{float(r[0][0]):.5g}" for r in row["resps"]],
            )
            for row in rows
        }
    return found


def rounded(row: dict[str, Any]) -> list[str]:
    return [f"{float(response[0][0]):.5g}" for response in row["resps"]]


def edited(baseline: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run, with its samples changed and its accuracies to match."""
    target.mkdir()
    (results,) = baseline.glob("results_*.json")
    content = json.loads(results.read_text("utf-8"))
    for path in baseline.glob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for row in rows:
            change(row)
        (target / path.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        content["results"][task]["acc,none"] = sum(row["acc"] for row in rows) / len(rows)
    (target / results.name).write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def place(
    tiny_library: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A library and the saved results of one setting on 40 items per task."""
    library = tiny_library("phi3")
    output = tmp_path_factory.mktemp("baseline")
    arguments = {"dtype": "float32", "batch_size": "8"}
    evaluation = {"limit": ITEMS, "bootstrap_iters": 0}
    (folder,) = run_grid(
        Grid(["arrow"], TASKS, output, str(library), arguments, evaluation),
    )
    return library, folder


def words(library: Path, baseline: Path, output: Path, *more: str) -> list[str]:
    return [
        *COMMAND, "gate", "--run", "arrow", "--library", str(library), "--baseline", str(baseline),
        "--tasks", ",".join(TASKS), "--model-args", "dtype=float32", "--output", str(output), *more,
    ]  # fmt: skip


def policy(folder: Path, text: str) -> list[str]:
    (folder / "gate.yaml").write_text(text)
    return ["--policy", str(folder / "gate.yaml")]


Run = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns its status and what it printed."""

    def result(command: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gks-eval", *command[len(COMMAND) :]])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("TQDM_DISABLE", "")  # bars show what is scored
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return result


def test_it_reads_the_baseline_s_items_as_the_grid_does_and_resumes_after_a_kill(
    place: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    library, baseline = place
    output = tmp_path / "out"
    # At a tolerance of 0 an unchanged candidate is read to the end.
    command = words(library, baseline, output, *policy(tmp_path, "min_pairs: 3\n"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "look at 20%" in line:
                os.kill(process.pid, signal.SIGKILL)
                break
    first = json.loads((output / "looks.json").read_text("utf-8"))
    assert len(first["looks"]) >= 3
    assert first["verdict"] is None
    assert (output / ".arrow.partial").exists()

    junit = tmp_path / "gate.xml"
    status, _, said = run([*command, "--junit", str(junit)])
    assert status == 0, said
    # No request of the finished looks is scored again.
    assert said.index("look at 20%") < said.index("Running loglikelihood")
    found = json.loads((output / "looks.json").read_text("utf-8"))
    assert found["verdict"]["status"] == "pass"
    assert [look["share"] for look in found["looks"]] == [0.05, 0.1, 0.2, 0.35, 0.55, 0.75, 1.0]
    assert [look["items"] for look in found["looks"][:3]] == [
        look["items"] for look in first["looks"][:3]
    ]
    assert numbers(output / "arrow") == numbers(baseline)
    assert 'tests="2" failures="0" errors="0"' in junit.read_text()
    assert not (output / ".arrow.partial").exists()

    (output / ".arrow.partial").mkdir()  # as a kill right after the verdict leaves it
    status, _, said = run(command)
    assert (status, "look at" in said) == (0, False)
    assert not (output / ".arrow.partial").exists()
    status, said, _ = run([*command, *policy(tmp_path, "min_pairs: 4\n")])
    assert status == 2
    assert "made with other arguments or content (policy)" in " ".join(said.split())


def test_a_planted_regression_and_a_loose_tolerance_stop_early(
    place: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    library, baseline = place
    better = edited(baseline, tmp_path / "better", lambda row: row.update(acc=1.0))
    output = tmp_path / "worse"
    status, shown, said = run(words(library, better, output, *policy(tmp_path, "min_pairs: 3\n")))
    assert status == 1, said + shown
    assert "REGRESSION" in shown
    found = json.loads((output / "looks.json").read_text("utf-8"))
    read = found["looks"][-1]["items"]
    assert all(size < ITEMS for size in read.values())
    ours, theirs = numbers(output / "arrow"), numbers(baseline)
    for task, size in read.items():
        assert len(ours[task]) == size
        assert ours[task] == {number: theirs[task][number] for number in ours[task]}
    assert run(words(library, baseline, tmp_path / "same", *policy(tmp_path, LOOSE)))[0] == 0
    looks = json.loads((tmp_path / "same" / "looks.json").read_text("utf-8"))["looks"]
    assert looks[-1]["share"] < 1.0


def test_other_settings_and_grids_in_the_folder_of_a_gate_are_refused(
    place: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    """Else a verdict would be that of another setting, or a grid would keep a part as a whole."""
    library, baseline = place
    output = tmp_path / "out"
    command = words(library, baseline, output, *policy(tmp_path, LOOSE))
    assert run(command)[0] == 0
    before = (output / "looks.json").read_bytes()
    status, *printed = run([*command, "--run", "base"])
    assert status == 2
    assert "looks.json holds the looks of setting 'arrow'; name another" in _one_line(printed)
    assert (output / "looks.json").read_bytes() == before
    whole = ["grid", "--settings", "arrow", "--library", str(library), "--tasks", ",".join(TASKS)]
    status, *printed = run([*COMMAND, *whole, "--output", str(output), *DTYPE])
    assert status == 7
    assert "gate --run reads a setting in parts" in _one_line(printed)

    # A gate that starts again and dies in its first look does not leave the old verdict.
    shutil.rmtree(output / "arrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedGate, "take", lambda *_: 1 / 0)
        assert run(command)[0] == 2
    assert (output / "arrow").exists()
    assert not (output / "looks.json").exists()
    assert run(command)[0] == 0


def test_a_grid_s_folder_is_not_replaced_by_a_gate(
    place: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    library, baseline = place
    output = tmp_path / "out"
    model = {"dtype": "float32", "batch_size": "8"}
    (folder,) = run_grid(Grid(["arrow"], TASKS, output, str(library), model))
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, *printed = run(words(library, baseline, output, *policy(tmp_path, LOOSE)))
    assert status == 2
    assert "gate --run reads a setting in parts" in _one_line(printed)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == held


def _one_line(printed: list[str]) -> str:
    return " ".join(" ".join(printed).split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--candidate", "x"], "--candidate and --run exclude each other"),
        (["--tasks", " , "], "--tasks names nothing"),
        (["--tasks", ""], "--run needs --tasks and --output"),
        (["--tasks", "gks_demo_goals_fr"], "has no results of gks_demo_goals_fr"),
        (["--baseline", "missing"], "missing does not exist"),
        (["--run", "nosuch"], "nosuch"),
    ],
    ids=["two candidates", "only commas", "no tasks", "other tasks", "no baseline", "no setting"],
)
def test_a_fault_is_one_sentence_and_exit_status_2(
    place: tuple[Path, Path], tmp_path: Path, run: Run, more: list[str], said: str
) -> None:
    status, *printed = run([*words(*place, tmp_path / "out"), *more])
    assert status == 2
    shown = " ".join(" ".join(printed).split())
    assert said in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out" / "arrow").exists()
