"""Settings divided into parts, and the requests that parts hand to their setting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gks_eval.grid import CELL_FILE, Grid, run_grid
from gks_eval.grid.runner import GridRun
from gks_eval.grid.units import Unit, divide, units

TASKS = ["gks_demo_goals_en", "gks_demo_science_de", "gks_demo_goals_fr"]


def grid(library: Path, output: Path) -> Grid:
    return Grid(
        settings=["arrow"],
        tasks=TASKS,
        output=output,
        library=str(library),
        model_arguments={"dtype": "float32"},
        evaluation={"limit": 2, "bootstrap_iters": 0},
    )


@pytest.mark.parametrize(
    ("settings", "workers", "parts", "whole", "parted"),
    [
        ([0, 1, 2, 3], 2, 2, [0, 1, 2, 3], []),
        ([0, 2, 3, 4, 5], 2, 2, [0, 2, 3, 4], [(5, 0), (5, 1)]),
        ([7], 3, 3, [], [(7, 0), (7, 1), (7, 2)]),
        ([1, 4], 3, 2, [], [(1, 0), (1, 1), (4, 0), (4, 1)]),
        ([1, 4], 3, 1, [1, 4], []),  # a single task
        ([1, 4], 3, 0, [1, 4], []),
    ],
)
def test_only_settings_fewer_than_the_workers_are_divided(
    settings: list[int], workers: int, parts: int, whole: list[int], parted: list[tuple[int, int]]
) -> None:
    names = [[f"task {n}"] for n in range(parts)]
    assert units(settings, workers, names) == [
        *[Unit(at) for at in whole],
        *[Unit(at, part, (f"task {part}",)) for at, part in parted],
    ]


@pytest.mark.parametrize(
    ("sizes", "parts", "expected"),
    [
        ([10, 10, 10, 10], 2, [[0, 2], [1, 3]]),
        ([10, 30, 10, 10], 2, [[1], [0, 2, 3]]),
        ([10, 10, 10], 5, [[0], [1], [2]]),
        ([6, 5, 4, 3, 2], 2, [[0, 3, 4], [1, 2]]),
        ([5], 2, [[0]]),
        ([1, 0], 2, [[0], [1]]),
    ],
)
def test_parts_are_of_similar_size(
    sizes: list[int], parts: int, expected: list[list[int]], tmp_path: Path
) -> None:
    def task(size: int) -> Any:
        rows = [(n, "x") for n in range(size)]
        return SimpleNamespace(
            eval_docs=rows, doc_iterator=lambda *, limit, samples: iter(rows[:limit])
        )

    loaded = {str(n): task(size) for n, size in enumerate(sizes)}
    tasks = SimpleNamespace(load=lambda _names: {"tasks": loaded})
    asked = Grid(settings=["base"], tasks=["t"], output=tmp_path)
    assert divide(tasks, asked, parts) == [[str(n) for n in part] for part in expected]


def test_a_plain_grid_resumes_from_parts(tiny_library: Callable[..., Path], tmp_path: Path) -> None:
    """One part is whole, one was made for another request, one is broken; the rest is computed."""
    plain = run_grid(grid(tiny_library("phi3"), tmp_path / "plain"))[0]
    asked = grid(tiny_library("phi3"), tmp_path / "parts")
    run = GridRun(asked)
    run.read_tasks()
    run.finished()
    took = [run.evaluate_part(0, n, [name]) for n, name in enumerate(TASKS)]
    assert all(part["distinct_tokens"] > 0 for part in took)
    parts = [asked.output / f".arrow.partial.{n}" for n in range(3)]
    mark = json.loads((parts[1] / "request.json").read_text("utf-8"))
    (parts[1] / "request.json").write_text(json.dumps(mark | {"identity": "another"}), "utf-8")
    (parts[2] / "requests_rank0.db").write_bytes(b"no database at all")
    folder = run_grid(asked)[0]
    assert not list(asked.output.glob(".*partial*"))
    assert _scores(folder) == pytest.approx(_scores(plain), rel=1e-6)
    saved = _distinct(plain) - _distinct(folder)
    assert saved == pytest.approx(took[0]["distinct_tokens"], rel=0.05)  # tasks share a first word

    shutil.rmtree(folder)  # a part starts from what the setting has scored
    run.finished()
    partial = asked.output / ".arrow.partial"
    run.evaluate_part(0, 0, TASKS)
    (asked.output / ".arrow.partial.0").rename(partial)
    assert run.evaluate_part(0, 0, TASKS[:2])["distinct_tokens"] == 0


def _scores(folder: Path) -> list[float]:
    return [
        float(pair[0])
        for path in sorted(folder.glob("samples_*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
        for [pair] in json.loads(line)["resps"]
    ]


def _distinct(folder: Path) -> int:
    record = json.loads((folder / CELL_FILE).read_text("utf-8"))
    tokens = record["spent"]["distinct_tokens"]
    assert isinstance(tokens, int)
    return tokens
