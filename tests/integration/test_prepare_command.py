"""`gks-eval prepare` as users run it, and the grid that uses what it made."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import run
from common import save_random_vectors, save_two_expert_recipe

COMMAND = [sys.executable, "-c", "from gks_eval.cli.main import main; main()"]
FILE = Path("prepared/phatgoose/vectors.safetensors")
RECORD = Path("prepared/phatgoose/prepared.json")


@pytest.fixture
def folder(
    tiny_base: Callable[..., Path], tiny_library: Callable[..., Path], tmp_path: Path
) -> Path:
    folder = tmp_path / "library"
    shutil.copytree(tiny_library("phi3", experts=("one", "two"), general=("en",)), folder)
    save_two_expert_recipe(folder, tiny_base("phi3"), rows=9, dropout=0.0)
    return folder


def grid(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    settings = "arrow,phatgoose;combine=outputs,mean_activation:en;preset=exact;top_k=2"
    return run(
        "grid", "--library", folder, "--settings", settings, "--tasks", "gks_demo_goals_en",
        "--limit", 3, "--model-args", "dtype=float32", "--output", output,
    )  # fmt: skip


def test_prepared_vectors_run_in_a_grid(folder: Path, tmp_path: Path) -> None:
    early = grid(folder, tmp_path / "results")
    assert early.returncode == 4
    assert f"`gks-eval prepare {folder} --router phatgoose`" in early.stderr
    assert not (tmp_path / "results").exists()

    common = ("prepare", folder, "--steps", 3, "--batch-size", 2, "--router")
    planned = run(*common, "phatgoose", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("to be made") == 2
    assert not (folder / "prepared").exists()
    made = run(*common, "phatgoose")
    assert made.returncode == 0, made.stderr
    assert "2 made, 0 kept" in made.stdout
    assert "0 made, 2 kept" in run(*common, "phatgoose").stdout
    rows = [f"--data={name}={folder / 'rows.jsonl'}" for name in ("one", "two")]
    other = run("prepare", folder, "--router", "mean_activation", *rows)
    assert other.returncode == 0, other.stderr

    done = grid(folder, tmp_path / "results")
    assert done.returncode == 0, done.stderr
    for setting in ("phatgoose_combine-outputs", "mean_activation-en_preset-exact_top_k-2"):
        (results,) = (tmp_path / "results" / setting).glob("results_*.json")
        library = json.loads(results.read_text("utf-8"))["config"]["gks_eval"]["library"]
        name = setting.partition("_combine")[0].partition("-en")[0]
        assert (
            library["vectors"]
            == json.loads((folder / "prepared" / name / "prepared.json").read_text("utf-8"))[
                "sha256"
            ]
        )

    save_random_vectors(folder, "phatgoose")
    changed = grid(folder, tmp_path / "results")
    assert changed.returncode == 7
    assert "phatgoose_combine-outputs was made" in changed.stderr
    assert "the vectors prepared for the router" in changed.stderr


@pytest.mark.hostile
def test_a_killed_run_resumes(folder: Path) -> None:
    arguments = ["prepare", str(folder), "--router", "phatgoose", "--steps", "400"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / RECORD).is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # in the second expert
    first = json.loads((folder / RECORD).read_text("utf-8"))["experts"]
    assert set(first) == {"one"}
    resumed = run(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "1 made, 1 kept" in resumed.stdout
    record = json.loads((folder / RECORD).read_text("utf-8"))["experts"]
    assert record["one"] == first["one"]
    assert {path.name for path in (folder / "prepared").iterdir()} <= {
        "phatgoose", ".phatgoose.lock",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--router", "arrow"], 2, "--router arrow prepares nothing"),
        (["--router", "phatgoose", "--dtype", "int8"], 2, "--dtype int8 is unknown"),
        (["--router", "phatgoose", "--data", "one=rows.jsonl"], 2, "no rows for two"),
        (["--router", "phatgoose", "--data", "x=y"], 2, "is not a recipe"),
    ],
)
def test_wrong_arguments_are_sentences(
    arguments: list[str], status: int, words: str, folder: Path
) -> None:
    found = run("prepare", folder, *arguments)
    assert found.returncode == status, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_without_a_recipe_the_option_is_named(folder: Path) -> None:
    (folder / "recipe.yaml").unlink()
    found = run("prepare", folder, "--router", "phatgoose")
    assert found.returncode == 2, found.stderr
    assert "has no recipe.yaml; name one with --data." in found.stderr


def test_another_version_of_the_recipe_is_reported(folder: Path) -> None:
    manifest = folder / "library.yaml"
    manifest.write_text(manifest.read_text("utf-8") + "provenance: {recipe: other}\n", "utf-8")
    found = run("prepare", folder, "--router", "mean_activation", "--dry-run")
    assert found.returncode == 0, found.stderr
    assert "another version of this recipe" in found.stderr
