"""A grid on Ray: two workers, one of them killed midway, and the numbers of a plain grid."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence

from gks_eval.errors import ResourceError, ResultsError, UsageError
from gks_eval.grid import CELL_FILE, Grid, run_grid

ray = pytest.importorskip("ray", reason="pip install 'gks-eval[ray]'")
pytestmark = [pytest.mark.filterwarnings("ignore")]

LibraryOf = Callable[..., Path]
SETTINGS = ["base", "arrow", "gks:avg", "uniform"]


def grid(library: Path, output: Path, settings: Sequence[str] = SETTINGS, **changes: Any) -> Grid:
    options: dict[str, Any] = {
        "tasks": ["gks_demo_goals_en", "gks_demo_science_de"],
        "library": str(library),
        # One request per batch, so that a resumed setting has the batches of an undisturbed one.
        "model_arguments": {"dtype": "float32", "batch_size": "1"},
        "evaluation": {"limit": 12, "bootstrap_iters": 0},
    }
    return Grid(settings=settings, output=output, **{**options, **changes})


def numbers(folder: Path) -> dict[str, Any]:
    """Scores of every sample by task, and the request of the setting."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[task] = [(row["doc_id"], row["resps"], row["acc"]) for row in rows]
    return found | {"request": json.loads((folder / CELL_FILE).read_text("utf-8"))["request"]}


def evaluating() -> list[int]:
    """Processes under this one that are evaluating a setting now."""
    import psutil

    named = ((p.pid, " ".join(p.cmdline())) for p in psutil.Process().children(recursive=True))
    return [pid for pid, command in named if "_Worker.evaluate" in command]


def start(cpus: int) -> None:
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})  # fmt: skip


def test_a_worker_killed_midway_changes_no_number(tiny_library: LibraryOf, tmp_path: Path) -> None:
    from gks_eval.grid.on_ray import RayOptions, run_grid_on_ray

    library, output = tiny_library("phi3"), tmp_path / "ray"
    run_grid(grid(library, output, SETTINGS[:1]))  # a plain run, which the cluster resumes
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 400
        while not killed and time.monotonic() < deadline:
            if list(output.glob(".*.partial/requests_*.db")) and (found := evaluating()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.01)

    states: list[tuple[str, str]] = []
    start(cpus=2)
    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        folders = run_grid_on_ray(
            grid(library, output),
            RayOptions(workers=2),
            lambda cell, state: states.append((cell.label, state)),
        )
        killer.join()
    finally:
        ray.shutdown()
    assert killed
    assert ("base", "kept") in states
    running = [label for label, state in states if state == "running"]
    assert len(running) == len(SETTINGS)  # three settings, one of them twice
    assert sorted(running) != sorted(set(running))
    assert [folder.name for folder in folders] == ["base", "arrow", "gks-avg", "uniform"]
    assert not list(output.glob(".*.partial"))
    for folder in run_grid(grid(library, tmp_path / "plain")):
        assert numbers(output / folder.name) == numbers(folder)
    kept: list[str] = []
    run_grid(grid(library, output), lambda _cell, state: kept.append(state))
    assert kept == ["kept"] * len(SETTINGS)


def test_errors_of_workers_are_sentences(
    tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gks_eval.grid import on_ray

    class Dying(on_ray._Worker):
        def evaluate(self, at: int) -> None:
            os._exit(at + 1)

    class Elsewhere(on_ray._Worker):
        def __init__(self, grid: Grid, requests: Any, *others: Any) -> None:
            changed = [{**one, "base": {"name": "another"}} for one in requests]
            super().__init__(grid, changed, *others)

    asked = grid(tiny_library("phi3"), tmp_path, ["base"])
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    start(cpus=1)
    try:
        with pytest.raises(UsageError) as few:
            on_ray.run_grid_on_ray(asked, on_ray.RayOptions(gpus=3))
        monkeypatch.setattr(on_ray, "_Worker", Elsewhere)
        with pytest.raises(ResultsError) as other:
            on_ray.run_grid_on_ray(asked, on_ray.RayOptions(workers=1))
        monkeypatch.setattr(on_ray, "_Worker", Dying)
        with pytest.raises(ResourceError) as dead:
            on_ray.run_grid_on_ray(asked, on_ray.RayOptions(workers=1))
    finally:
        ray.shutdown()
    assert_sentence(few.value, "--gpus 3", "has 0 GPUs")
    assert_sentence(other.value, "other content", "the base")
    assert_sentence(dead.value, "setting base: its workers died 2 times", "again to resume")


def test_a_cluster_that_is_not_there_ends_in_a_sentence(
    tiny_library: LibraryOf, tmp_path: Path
) -> None:
    from gks_eval.grid.on_ray import RayOptions, run_grid_on_ray

    with pytest.raises(UsageError) as caught:
        run_grid_on_ray(grid(tiny_library("phi3"), tmp_path, ["base"]), RayOptions("auto"))
    assert_sentence(caught.value, "--ray auto: cannot be reached")


@pytest.mark.parametrize(
    ("options", "environment", "parts"),
    [
        (["--workers", "2"], {}, ["--workers belongs to --ray"]),
        (["--gpus", "1"], {}, ["--gpus belongs to --ray"]),
        (["--ray", "local"], {"WORLD_SIZE": "2"}, ["--ray starts its own workers", "torchrun"]),
    ],
    ids=["workers", "gpus", "torchrun"],
)
def test_options_that_do_not_go_together(
    options: list[str],
    environment: dict[str, str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gks_eval.cli.main import main

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = ["grid", "--settings", "base", "--tasks", "gks_demo", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gks-eval", *command, *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts)


def test_ray_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gks_eval.util import ray_cluster

    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        ray_cluster.check_ray()
    assert_sentence(caught.value, "--ray needs Ray", "gks-eval[ray]")
