"""A worker of a cluster whose host differs from the command's, without a cluster."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence

from gks_eval.errors import GksError, ResultsError
from gks_eval.grid.on_ray import RayOptions, _Pool
from gks_eval.grid.ray_worker import RayWorker, software
from gks_eval.grid.runner import GridRun
from gks_eval.grid.settings import Grid
from gks_eval.grid.units import Unit
from gks_eval.tasklib.local_data import local_data
from gks_eval.util.grid_order import write_order


def test_a_host_that_differs_is_named_with_its_difference(
    tiny_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    grid = Grid(
        settings=["arrow"],
        tasks=["gks_demo_goals_en"],
        output=output,
        library=str(tiny_library("phi3")),
        evaluation={"limit": 2},
    )
    with local_data():
        run = GridRun(grid)
        run.read_tasks()
    here = software()
    requests = run.requests

    def start(
        there: Grid = grid, folder: str = str(tmp_path), asked: Any = requests, **found: str
    ) -> GksError | None:
        worker = RayWorker(there, asked, folder, None, {**here, **found})
        try:
            return worker.start()
        finally:
            worker._data.close()

    def fault(*parts: str, **changes: Any) -> None:
        error = start(**changes)
        assert error is not None
        assert_sentence(error, f"--ray: host {platform.node()}", *parts)

    fault("does not see what the command wrote", f"{output}; name an --output")
    output.mkdir()
    write_order(output, ["arrow", "base"])
    assert start() is None
    fault("cannot enter gone", folder="gone")
    fault(f"torch {here['torch']} for 1.0", "install the same versions", torch="1.0")
    code = {"the code of gks-eval": "0"}
    fault("other software than the command (the code of gks-eval); install", **code)
    # A plug-in that is not installed there, and a folder of tasks that is not there.
    fault("'chosen' is unknown", there=replace(grid, settings=["chosen"]))
    fault("--include-path gone is not a folder", there=replace(grid, include_paths=["gone"]))
    other = [{**one, "library": "0"} for one in requests]
    fault("reads other content", "the adapters of the library", asked=other)

    # What a worker wrote to its own disk is not a result.
    pool = _Pool(run, RayOptions(), lambda _cell, _state: None)
    with pytest.raises(ResultsError) as lost:
        pool._done(Unit(0), {})
    assert_sentence(lost.value, "a worker evaluated arrow", f"{output / 'arrow'} is not there")
    (output / "arrow").mkdir()
    with pytest.raises(ResultsError) as torn:
        pool._done(Unit(0), {})
    assert_sentence(torn.value, "holds no finished")
    assert not list((output / "arrow").iterdir())
