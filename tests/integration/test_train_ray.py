"""The fan-out over Ray: two workers, one of them killed midway, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from common import assert_sentence

from gks_eval.errors import DataError, LibraryError, ResourceError, UsageError
from gks_eval.library.load import load_library
from gks_eval.training.jobs import make_plan
from gks_eval.training.whole_library import train_library

ray = pytest.importorskip("ray", reason="pip install 'gks-eval[ray]'")
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Callable[[str], Path]) -> Path:
    rows = [{"source": f"say {n}", "target": str(n % 7)} for n in range(48)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = {
        "base_model": str(tiny_base("phi3")),
        "adapter": {"targets": ["qkv_proj", "o_proj"]},
        "schedule": {
            "epochs": 6, "learning_rate": 1e-2, "accumulation": 4, "optimizer": "adamw",
            "gradient_checkpointing": False, "checkpoint_steps": 5,
        },
        "experts": {"members": {n: {"file": "rows.jsonl"} for n in ("one", "two", "three")}},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return path


def workers() -> list[int]:
    """Processes under this one that are training an adapter now."""
    import psutil

    named = ((p.pid, " ".join(p.cmdline())) for p in psutil.Process().children(recursive=True))
    return [pid for pid, command in named if "_train_one" in command]


@pytest.mark.hostile
def test_a_worker_killed_midway_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    from gks_eval.training.fan_out import train_on_ray

    library = tmp_path / "library"
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if list(library.glob(".work/*/checkpoint-*/WHOLE")) and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.02)

    # One thread a worker, as in the run that it is compared with.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})  # fmt: skip
    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        outcome = train_on_ray(recipe, library)
        killer.join()
    finally:
        ray.shutdown()
    assert killed
    assert sorted(outcome.trained) == ["experts/one", "experts/three", "experts/two"]
    assert outcome.missing == ()
    assert len(load_library(str(library)).experts) == 3
    alone = tmp_path / "alone"
    train_library(make_plan(recipe), alone)
    for name in ("one", "two", "three"):
        curves = [(folder / "experts" / name / "loss.jsonl") for folder in (library, alone)]
        losses = [[json.loads(x)["loss"] for x in c.read_text().splitlines()] for c in curves]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_an_error_of_ours_arrives_as_itself(recipe: Path, tmp_path: Path) -> None:
    from gks_eval.training.fan_out import train_on_ray

    (tmp_path / "rows.jsonl").write_text('{"source": "a"}', "utf-8")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(DataError, match="no column 'target'"):
            train_on_ray(recipe, tmp_path / "library", only=["one"])
    finally:
        ray.shutdown()


def test_a_task_that_keeps_dying_ends_in_a_sentence(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gks_eval.training import fan_out

    def dies(*_: str) -> None:
        os._exit(1)

    def elsewhere(*_: str) -> bool:
        return True

    monkeypatch.setattr(fan_out, "_train_one", dies)
    monkeypatch.setattr(fan_out, "RETRIES", 1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ResourceError) as caught:
            fan_out.train_on_ray(recipe, tmp_path / "library", only=["one"])
        with pytest.raises(UsageError) as large:
            fan_out.train_on_ray(recipe, tmp_path / "library", only=["one"], gpus=1)
        monkeypatch.setattr(fan_out, "_train_one", elsewhere)
        with pytest.raises(LibraryError) as lost:
            fan_out.train_on_ray(recipe, tmp_path / "library", only=["one"])
    finally:
        ray.shutdown()
    assert_sentence(caught.value, "experts/one: its Ray task failed", "again to resume")
    assert_sentence(large.value, "--gpus 1: no host of the cluster", "1 CPUs and 0 GPUs")
    assert_sentence(lost.value, "experts/one: a Ray worker trained it", "is not there")


def test_a_cluster_that_is_not_there_ends_in_a_sentence(recipe: Path, tmp_path: Path) -> None:
    from gks_eval.training.fan_out import train_on_ray

    with pytest.raises(UsageError) as caught:
        train_on_ray(recipe, tmp_path / "library", address="auto")
    assert_sentence(caught.value, "--ray auto: cannot be reached")
