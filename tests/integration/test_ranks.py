"""Several processes on one evaluation: torchrun with two ranks on gloo against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LibraryOf = Callable[..., Path]

HUB = Path(__file__).parents[1] / "data" / "hub"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
EVALUATE = """
import json, sys
from pathlib import Path
import lm_eval
from gks_eval.grid import task_manager
from gks_eval.model.lm import GksArrowLM

library, output, *tasks = sys.argv[1:]
lm = GksArrowLM(library=library, dtype="float32", batch_size=4, max_length=256)
results = lm_eval.simple_evaluate(
    model=lm, tasks=tasks, task_manager=task_manager(tasks), limit=5, log_samples=True,
    bootstrap_iters=0, gen_kwargs={"max_gen_toks": 8},
)
Path(f"{output}-counts-{lm.rank}.json").write_text(json.dumps(lm.counts.computed_tokens))
if results is not None:
    Path(f"{output}.json").write_text(json.dumps(results["samples"], default=str))
"""
# Items of two protocols, more than one request kind, and fewer items than would divide evenly.
TASKS = ["gks_demo_goals_en", "gks_paper_piqa", "gks_arc_easy", "gks_bbh_object_counting"]


def evaluate(start: list[str], library: Path, folder: Path) -> tuple[dict[str, Any], list[int]]:
    """Return every task's samples by item, and the tokens that each process computed."""
    script = folder / "evaluate.py"
    script.write_text(EVALUATE, "utf-8")
    done = subprocess.run(
        [*start, str(script), str(library), str(folder / "out"), *TASKS],
        cwd=HUB,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    samples = json.loads((folder / "out.json").read_text("utf-8"))
    counts = [json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("out-counts-*"))]
    return {task: {row["doc_id"]: row for row in rows} for task, rows in samples.items()}, counts


def log_likelihoods(row: dict[str, Any]) -> list[float]:
    return [float(answer[0][0]) for answer in row["resps"]]


def test_two_ranks_give_the_numbers_of_one(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("llama")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone, (all_tokens,) = evaluate([sys.executable], library, tmp_path / "one")
    shared, tokens = evaluate(TORCHRUN, library, tmp_path / "two")
    assert set(shared) == set(alone) == set(TASKS)
    for task, rows in alone.items():
        assert set(shared[task]) == set(rows)
        for item, row in rows.items():
            other = shared[task][item]
            assert other["doc_hash"] == row["doc_hash"]
            if task == "gks_bbh_object_counting":
                assert other["resps"] == row["resps"]
            else:
                assert log_likelihoods(other) == pytest.approx(log_likelihoods(row), abs=1e-3)
                assert other["acc"] == row["acc"]
    # Each did about half; together hardly more than one process alone.
    assert len(tokens) == 2
    assert max(tokens) < 0.65 * all_tokens
    assert sum(tokens) < 1.1 * all_tokens


def test_a_grid_is_shared_and_written_once(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("llama")
    options = ["--library", str(library), "--settings", "base,arrow", "--limit", "5"]
    options += ["--tasks", "gks_demo_goals_en", "--model-args", "dtype=float32"]
    script = tmp_path / "gks_eval_command.py"
    script.write_text("from gks_eval.cli.main import main; main()", "utf-8")
    command = [str(script), "grid", *options]
    found = {}
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = subprocess.run(
            [*start, *command, "--output", str(tmp_path / name)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Accuracy in percent") == 1
        for cell in ("base", "arrow"):
            (file,) = (tmp_path / name / cell).glob("samples_*.jsonl")
            rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            found[name, cell] = {row["doc_id"]: log_likelihoods(row) for row in rows}
        assert not list((tmp_path / name).glob(".*.partial"))
    for cell in ("base", "arrow"):
        assert set(found["two", cell]) == set(range(5))
        for item, scores in found["one", cell].items():
            assert found["two", cell][item] == pytest.approx(scores, abs=1e-3)


def test_one_process_counts_for_a_dry_run(tiny_library: LibraryOf, tmp_path: Path) -> None:
    script = tmp_path / "gks_eval_command.py"
    script.write_text("from gks_eval.cli.main import main; main()", "utf-8")
    options = ["--library", str(tiny_library("llama")), "--settings", "base,arrow", "--limit", "5"]
    options += ["--tasks", "gks_demo_goals_en", "--output", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(
        [*TORCHRUN, str(script), "grid", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Settings: 2 to run, 0 finished.") == 1
    assert not (tmp_path / "out").exists()
