"""Fixtures of the task pack's tests; lm-eval is imported only where one of them is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def pack() -> Any:
    """The pack's tasks alone."""
    from lm_eval.tasks import TaskManager

    from gks_eval.util.paths import tasks_dir

    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


@pytest.fixture(scope="session")
def built_in_pack() -> Any:
    """The tasks of lm-eval itself: 10 s to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture(params=["invented", "real"])
def data_hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Stand in a folder that holds the data sets as ``org/name``, offline."""
    import datasets
    from task_pack import HUB, REAL

    if request.param == "real" and not REAL:
        pytest.skip("set GKS_DATA_ROOT to a folder of real samples")
    folder = HUB if request.param == "invented" else Path(REAL)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GKS_DATA_ROOT", raising=False)  # it would come first
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


@pytest.fixture
def our_model_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks believe that a ``gks_arrow`` model was made."""
    monkeypatch.setitem(sys.modules, "gks_eval.model.lm", SimpleNamespace(CREATED=1))
