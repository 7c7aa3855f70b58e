"""A full disk, a read-only folder, two processes on one output, a clock set back, odd paths."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from evidence_factory import write_run
from warm import Server

from gks_eval.errors import ResourceError

pytestmark = pytest.mark.hostile

TASK = "gks_demo_goals_en"
Arguments = list[str | Path]


def grid(library: Path, output: Path, *more: str) -> Arguments:
    return [
        "grid", "--library", library, "--settings", "base,arrow", "--tasks", TASK, "--limit", "4",
        "--output", output, *more,
    ]  # fmt: skip


def commands(library: Path, recipe: Path, runs: Path, output: Path) -> dict[str, Arguments]:
    """Every command that writes, each into a place of its own below `output`."""
    routes: Arguments = ["routes", "--library", library, "--task", TASK, "--limit", "2"]
    gate: Arguments = ["gate", "--baseline", runs / "a", "--candidate", runs / "b"]
    return {
        "grid": grid(library, output / "grid"),
        "train": ["train", recipe, "--output", output / "train"],
        "report": ["report", runs, "--output", output / "report/page.html"],
        "routes": [*routes, "--output", output / "routes/routes.json"],
        "gate": [*gate, "--json", output / "gate/verdict.json"],
        "run": [
            "run", "--model", "dummy", "--tasks", TASK, "--limit", "2", "--log_samples",
            "--output_path", output / "run",
        ],
    }  # fmt: skip


def sentence(warm: Server) -> str:
    """The last line of what was printed, which must be the error's."""
    text = warm.log.read_text("utf-8")
    assert "Traceback" not in text, text
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("gks-eval: error: "), text
    print(last)
    return last


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        write_run(tmp_path / "runs" / label, {"t": [1.0, 0.0, 1.0] * 40})
    return tmp_path / "runs"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return ``disk(options)``: (re)mounts a file system of its own and returns its folder."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        how = f"remount,{options}" if mounted else options
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], check=True)
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("name", ["grid", "train", "report", "routes", "gate", "run"])
def test_a_full_disk(
    name: str, disk: Callable[[str], Path], warm: Server, library: Path, recipe: Path, runs: Path
) -> None:
    place = disk("size=1m")
    command = commands(library, recipe, runs, place)[name]
    (place / name).mkdir()
    for room in (0, 4, 12, 24, 36):  # KiB: none at all, and mostly less than is needed
        shutil.rmtree(place / name)
        (place / name).mkdir()
        fill(place / "filler", room * 1024)
        status = warm.run(command)
        if room and status == 0:  # routes and verdicts are small
            continue
        assert status == (2 if name == "gate" else ResourceError.exit_code), warm.log.read_text()
        assert str(place) in sentence(warm)
    (place / "filler").unlink()
    disk("size=100m")
    assert warm.run(command) == 0, warm.log.read_text()
    assert [path for path in (place / name).rglob("*") if path.is_file()]
    assert [p.name for p in (place / name).rglob(".*") if p.name != ".lock"] == []


def fill(path: Path, room: int) -> None:
    """Write until nothing more goes, then give `room` bytes back."""
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096) == 4096:
            pass
    os.truncate(path, max(0, path.stat().st_size - room))


@pytest.mark.parametrize("name", ["grid", "train", "report", "routes", "gate", "run"])
def test_a_read_only_folder(
    name: str, disk: Callable[[str], Path], warm: Server, library: Path, recipe: Path, runs: Path
) -> None:
    disk("size=1m")
    place = disk("ro,size=1m")
    assert warm.run(commands(library, recipe, runs, place)[name]) == (
        2 if name == "gate" else ResourceError.exit_code
    )
    assert "Read-only file system" in sentence(warm)


def test_two_processes_on_one_output(
    warm: Server,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    library: Path,
    recipe: Path,
    runs: Path,
) -> None:
    other = Server(tmp_path_factory.mktemp("other"))
    try:
        both = commands(library, recipe, runs, tmp_path)
        for name in ("grid", "train", "report"):
            warm.start(both[name])
            other.start(both[name])
            found = [warm.status(), other.status()]
            if name == "grid":  # one works, the other is told; or both, one after the other
                assert found in ([0, 9], [9, 0], [0, 0]), found
                if 9 in found:
                    assert "another grid is writing" in sentence(warm if found[0] else other)
            else:
                assert found == [0, 0], warm.log.read_text() + other.log.read_text()
    finally:
        other.close()
    written = sorted(p.name for p in (tmp_path / "grid").iterdir())
    assert written == [".lock", "arrow", "base", "grid.json"]
    trained = yaml.safe_load((tmp_path / "train/library.yaml").read_text("utf-8"))
    assert sorted(trained["experts"]) == ["one", "two"]
    told = [s.log.read_text("utf-8") for s in (warm, other)]
    assert sum(text.count("page.html: 2 runs") for text in told) == 2
    assert (tmp_path / "report/page.html").read_bytes().rstrip().endswith(b"</html>")


def test_a_clock_that_was_set_back(
    warm: Server, library: Path, recipe: Path, runs: Path, tmp_path: Path
) -> None:
    """All files stem from the future, those of checkpoints in the wrong order."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert warm.run(["train", recipe, "--output", whole]) == 0
    pid = warm.start(["train", recipe, "--output", killed])
    while not list(killed.glob(".work/*/checkpoint-*/WHOLE")):
        assert warm.status(0.01) is None
    warm.kill(pid)
    assert warm.run(grid(library, tmp_path / "grid")) == 0
    future = 4e9
    for path in sorted([*killed.rglob("*"), *(tmp_path / "grid").rglob("*"), *runs.rglob("*")]):
        future -= 1000
        os.utime(path, (future, future))
    assert warm.run(["train", recipe, "--output", killed]) == 0
    for name in ("one", "two"):
        weights = f"experts/{name}/adapter_model.safetensors"
        assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert warm.run(grid(library, tmp_path / "grid")) == 0
    assert warm.log.read_text().count(": kept") == 2
    # The newest run is the one whose name says so, whatever the file system says.
    write_run(runs / "a", {"t": [0.0] * 120}, stamp="2031-01-01T00-00-00.000000")
    os.utime(runs / "a/results_2031-01-01T00-00-00.000000.json", (1, 1))
    assert warm.run(["compare", runs / "a", runs / "b", "--format", "json"]) == 0
    scores = json.loads(warm.log.read_text("utf-8"))["rows"][0]["scores"]
    assert min(score["value"] for score in scores.values()) == 0.0


def test_paths_with_spaces_and_unicode(
    warm: Server, library: Path, recipe: Path, runs: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "ein Ördner  [x] 'q' 100% 日本"
    data = tmp_path / "dåta  'q'"  # the data sets' own reader takes brackets for a pattern
    data.mkdir()
    shutil.copytree(library, odd / "my libräry")
    shutil.copytree(recipe.parent, odd / "récipe 1")
    shutil.copytree(runs, odd / "rüns (old)")
    (odd / "tâsks").mkdir()
    (data / "q ä.jsonl").write_text('{"q": "2 + 2 =", "c": ["4", "5"], "a": 0}\n', "utf-8")
    (odd / "tâsks/my.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "mine",
                "dataset_path": "json",
                "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(data / "q ä.jsonl")}},
                "output_type": "multiple_choice",
                "doc_to_text": "{{q}}",
                "doc_to_choice": "{{c}}",
                "doc_to_target": "{{a}}",
            }
        ),
        "utf-8",
    )
    out = odd / "oüt"
    every = commands(odd / "my libräry", odd / "récipe 1/recipe.yaml", odd / "rüns (old)", out)
    every["grid"] = [
        "grid", "--library", odd / "my libräry", "--settings", "base,arrow", "--tasks", "mine",
        "--output", out / "grid", "--include-path", odd / "tâsks",
    ]  # fmt: skip
    every["own tasks"] = [
        "run", "--model", "gks_arrow", "--model_args", f"library={odd / 'my libräry'},subtract=en",
        "--tasks", "mine", "--include_path", odd / "tâsks", "--output_path", out / "own",
    ]  # fmt: skip
    every["compare"] = ["compare", out / "grid/base", out / "grid/arrow"]
    every["trained"] = ["library", "show", out / "train"]
    every["page"] = ["report", out / "grid", "-o", out / "päge 2.html"]
    for name, command in every.items():
        assert warm.run(command) in ((0, 1, 2) if name == "gate" else (0,)), warm.log.read_text()
        assert "Traceback" not in warm.log.read_text("utf-8")
    assert (out / "päge 2.html").stat().st_size > 10_000
    assert (out / "gate/verdict.json").is_file()
    missing = warm.run(["compare", out / "nö  such", out / "grid/base"])
    assert missing != 0
    assert str(out / "nö  such") in sentence(warm)
