"""A grid on Ray: two workers, one of them killed midway, and the numbers of a plain grid."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
        "model_arguments": {"dtype": "float32", "batch_size": "1"},
        "evaluation": {"limit": 12, "bootstrap_iters": 0},
    }
    return Grid(settings=settings, output=output, **{**options, **changes})


def numbers(folder: Path) -> dict[str, Any]:
    """Prompts and scores of every sample by task, and the request of the setting."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        # Parts have other batches, which may change the last bits.
        scores = [[float(pair[0]) for [pair] in row["resps"]] for row in rows]
        found[task] = [(row["doc_id"], row["arguments"], row["acc"]) for row in rows]
        found[f"{task} scores"] = np.array(scores)
    return found | {"request": json.loads((folder / CELL_FILE).read_text("utf-8"))["request"]}


def test_a_cluster_that_is_not_there_ends_in_a_sentence(
    tiny_library: LibraryOf, tmp_path: Path
) -> None:
    from gks_eval.grid.on_ray import RayOptions, run_grid_on_ray

    with pytest.raises(UsageError) as caught:
        run_grid_on_ray(grid(tiny_library("phi3"), tmp_path, ["base"]), RayOptions("auto"))
    assert_sentence(caught.value, "--ray auto: cannot be reached")


def test_a_worker_larger_than_any_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts have the GPUs together, and the large one is down; Ray would wait for ever."""
    from gks_eval.util.ray_cluster import check_size

    hosts = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: hosts)
    check_size(8.0, 2.0)
    check_size(64.0, 0.0)
    for cpus, gpus in ((1.0, 3.0), (9.0, 1.0), (65.0, 0.0)):
        with pytest.raises(UsageError) as caught:
            check_size(cpus, gpus)
        assert_sentence(caught.value, f"--gpus {gpus:g}", "the largest has 8 CPUs and 2 GPUs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers' cores, for all tests below."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_worker_killed_midway_changes_no_number(
    tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gks_eval.grid import on_ray

    class Mortal(on_ray.RayWorker):
        """One worker is killed in the middle of a part."""

        def evaluate(self, unit: Any, before: Any) -> Any:
            from lm_eval.api.model import CacheHook

            add, seen = CacheHook.add_partial, []

            def scored(*arguments: Any) -> None:
                add(*arguments)
                seen.append(arguments)
                if len(seen) == 10 and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            if unit.part is not None:
                CacheHook.add_partial = scored
            try:
                return super().evaluate(unit, before)
            finally:
                CacheHook.add_partial = add

    library, output, killed = tiny_library("phi3"), tmp_path / "ray", tmp_path / "killed"
    run_grid(grid(library, output, SETTINGS[:1]))  # a plain run, which the cluster resumes
    monkeypatch.setattr(on_ray, "RayWorker", Mortal)
    states: list[tuple[str, str]] = []
    folders = on_ray.run_grid_on_ray(
        grid(library, output),
        on_ray.RayOptions(workers=2),
        lambda cell, state: states.append((cell.label, state)),
    )
    assert killed.exists()
    parts = [state for label, state in states if state.startswith("part")]
    assert sorted(set(parts)) == ["part 1", "part 2"]
    assert len(parts) == 3  # one of them twice
    whole = [("arrow", "running"), ("gks:avg", "running")]
    parted = [("uniform", state) for state in parts]
    ended = [(label, "done") for label in SETTINGS[1:]]
    assert sorted(states) == sorted([("base", "kept"), *whole, *parted, *ended])
    assert [folder.name for folder in folders] == ["base", "arrow", "gks-avg", "uniform"]
    assert not list(output.glob(".*.partial*"))
    for folder in run_grid(grid(library, tmp_path / "plain")):
        found, expected = numbers(output / folder.name), numbers(folder)
        for name in [name for name in expected if name.endswith(" scores")]:
            np.testing.assert_allclose(found.pop(name), expected.pop(name), rtol=1e-6)
        assert found == expected
    spent = [json.loads((o / "uniform" / CELL_FILE).read_text("utf-8"))["spent"]["distinct_tokens"]
             for o in (output, tmp_path / "plain")]  # fmt: skip
    assert 0.6 < spent[0] / spent[1] <= 1  # without what the killed worker had scored
    kept: list[str] = []
    run_grid(grid(library, output), lambda _cell, state: kept.append(state))
    assert kept == ["kept"] * len(SETTINGS)


@pytest.mark.usefixtures("cluster")
def test_errors_of_workers_are_sentences(
    tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gks_eval.grid import on_ray

    class Dying(on_ray.RayWorker):
        def evaluate(self, unit: Any, before: Any) -> Any:
            os._exit(1)

    class Elsewhere(on_ray.RayWorker):
        def __init__(self, grid: Grid, requests: Any, *others: Any) -> None:
            changed = [{**one, "base": {"name": "another"}} for one in requests]
            super().__init__(grid, changed, *others)

    asked = grid(tiny_library("phi3"), tmp_path, ["base"])
    monkeypatch.setattr(on_ray, "RETRIES", 0)
    with pytest.raises(UsageError) as few:
        on_ray.run_grid_on_ray(asked, on_ray.RayOptions(gpus=3))
    monkeypatch.setattr(on_ray, "RayWorker", Elsewhere)
    with pytest.raises(ResultsError) as other:
        on_ray.run_grid_on_ray(asked, on_ray.RayOptions(workers=1))
    monkeypatch.setattr(on_ray, "RayWorker", Dying)
    with pytest.raises(ResourceError) as dead:
        on_ray.run_grid_on_ray(asked, on_ray.RayOptions(workers=1))
    assert_sentence(few.value, "--gpus 3", "2 CPUs and 0 GPUs")
    assert_sentence(other.value, "other content", "the base")
    assert_sentence(dead.value, "setting base: its workers died", "again to resume")


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
