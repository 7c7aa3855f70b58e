"""Which tasks cannot be read in parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.samplers import ContextSampler, FirstNSampler

from gks_eval.errors import UsageError
from gks_eval.grid import Grid
from gks_eval.grid.parts import _versions, open_parts


def index(sampler: Any, shots: int | None) -> Any:
    """An index of one task."""
    config = SimpleNamespace(num_fewshot=shots)
    task = SimpleNamespace(config=config, sampler=sampler([{}]), VERSION=2.0)
    return SimpleNamespace(load=lambda _: {"tasks": {"toy": task}})


def test_random_examples_depend_on_the_items_read_and_are_refused(tmp_path: Path) -> None:
    plain = Grid(["arrow"], ["toy"], tmp_path)
    asked = Grid(["arrow"], ["toy"], tmp_path, evaluation={"num_fewshot": 3})
    for grid, shots in ((plain, 2), (asked, None), (asked, 2)):
        assert _versions(index(FirstNSampler, shots), grid) == {"toy": "2.0"}
        with pytest.raises(UsageError, match="toy draws few-shot examples item after item"):
            _versions(index(ContextSampler, shots), grid)
    for grid, shots in ((plain, 0), (plain, None), (asked, 0)):
        assert _versions(index(ContextSampler, shots), grid) == {"toy": "2.0"}


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    grid = Grid(["base"], ["gks_demo"], tmp_path, "smollm2-demo")
    with pytest.raises(UsageError, match="runs in one process"), open_parts(grid):
        pass
