"""`gks-eval grid --dry-run`: what it counts is what a run computes, and it reads no weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence

from gks_eval.cli.main import main
from gks_eval.errors import UsageError
from gks_eval.grid import CELL_FILE, Grid, run_grid
from gks_eval.grid.grid_plan import GridPlan, TaskSize, plan_grid
from gks_eval.grid.table import plan_lines

LibraryOf = Callable[..., Path]
TASKS = ["gks_demo_goals_en", "gks_demo_science_de"]


@pytest.fixture
def grid(tiny_library: LibraryOf, tmp_path: Path) -> Grid:
    """Two settings on a tiny base whose weights are out of the way."""
    library = tiny_library("phi3")
    return Grid(
        settings=["base", "gks:avg"],
        tasks=TASKS,
        output=tmp_path / "out",
        library=str(library),
        model_arguments={"dtype": "float32", "batch_size": "8"},
        evaluation={"limit": 5, "bootstrap_iters": 0},
    )


def hide_weights(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the base's weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    monkeypatch.setattr("gks_eval.model.routed_lm.attach", read)


def test_it_counts_what_a_run_computes(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hidden:
        hide_weights(grid, hidden)
        plan = plan_grid(grid)
    assert not grid.output.exists()
    assert [(cell.label, done) for cell, done in plan.cells] == [
        ("base", False),
        ("gks:avg", False),
    ]
    assert {task: size.items for task, size in plan.tasks.items()} == dict.fromkeys(TASKS, 5)
    assert plan.rate is None
    assert plan.seconds is None

    (folder, _) = run_grid(grid)
    record = json.loads((folder / CELL_FILE).read_text("utf-8"))
    assert record["spent"]["distinct_tokens"] == plan.distinct
    assert record["spent"]["seconds"] > 0
    scored = {
        task: sum(
            len(json.loads(line)["resps"])
            for path in folder.glob(f"samples_{task}_*.jsonl")
            for line in path.read_text("utf-8").splitlines()
        )
        for task in TASKS
    }
    assert {task: size.requests for task, size in plan.tasks.items()} == scored


def test_the_counts_against_a_naive_tree(grid: Grid) -> None:
    # The tiny base's tokenizer has a token a byte, and adds none.
    plan = plan_grid(replace(grid, tasks=TASKS[:1]))
    (folder,) = run_grid(replace(grid, tasks=TASKS[:1], settings=["base"]))
    (path,) = folder.glob("samples_*.jsonl")
    inputs = set()
    for line in path.read_text("utf-8").splitlines():
        for arguments in json.loads(line)["arguments"].values():
            inputs.add((arguments["arg_0"] + arguments["arg_1"]).encode()[:-1])
    prefixes = {text[: n + 1] for text in inputs for n in range(len(text))}
    assert plan.distinct == len(prefixes)
    assert plan.tasks[TASKS[0]].tokens == sum(map(len, inputs))
    assert plan.tasks[TASKS[0]].distinct == len(prefixes)


def test_finished_settings_give_the_pace(grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    run_grid(replace(grid, settings=["base"]))
    record = grid.output / "base" / CELL_FILE
    content = json.loads(record.read_text("utf-8"))
    content["spent"]["seconds"] = content["spent"]["distinct_tokens"] / 2
    record.write_text(json.dumps(content), "utf-8")
    plan = plan_grid(grid)
    assert plan.left == 1
    assert plan.rate == pytest.approx(2.0)
    assert plan.seconds == pytest.approx(plan.distinct / 2)
    # q, k, v fused 64 x 192, o 64 x 64, gate and up 64 x 256, down 128 x 64, twice; five norms.
    assert plan.weights == 2 * (64 * 192 + 64 * 64 + 64 * 256 + 128 * 64) + 5 * 64
    assert plan.tera_operations == pytest.approx(2e-12 * plan.weights * plan.distinct)


def test_a_record_of_an_older_version_has_no_pace(grid: Grid) -> None:
    run_grid(replace(grid, settings=["base"]))
    record = grid.output / "base" / CELL_FILE
    content = json.loads(record.read_text("utf-8"))
    del content["spent"]
    record.write_text(json.dumps(content), "utf-8")
    assert plan_grid(grid).rate is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "1 min"), (119 * 60, "119 min"), (125 * 60, "2 h 5 min")]
)
def test_the_time_in_words(seconds: int, words: str) -> None:
    plan = GridPlan(
        cells=[(None, False), (None, True)],  # type: ignore[list-item]
        tasks={"a": TaskSize(1, 2, 3, 3)}, distinct=1000, continued=7, weights=10,
        rate=1000 / seconds,
    )  # fmt: skip
    said = " ".join(plan_lines(plan))
    assert f"Estimated: {words}, at" in said
    assert "1 to run, 1 finished" in said
    assert "Generation requests: 7" in said


def test_a_finished_grid_has_nothing_left() -> None:
    plan = GridPlan(
        cells=[(None, True)],  # type: ignore[list-item]
        tasks={"a": TaskSize(1, 2, 3, 3)}, distinct=1000, continued=0, weights=10, rate=5.0,
    )  # fmt: skip
    said = ["Settings: 0 to run, 1 finished.", "Nothing remains to be computed."]
    assert plan_lines(plan) == said


def test_texts_to_continue_are_counted(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"q": "one", "a": "1"}\n{"q": "two", "a": "2"}\n', "utf-8"
    )
    (tmp_path / "open.yaml").write_text(
        f"""
task: open_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
""",
        "utf-8",
    )
    plan = plan_grid(replace(grid, tasks=["open_numbers"], include_paths=[str(tmp_path)]))
    assert plan.continued == 2
    assert plan.tasks["open_numbers"] == TaskSize(items=2, requests=2, tokens=0, distinct=0)


def test_the_command(
    grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_weights(grid, monkeypatch)
    command = ["gks-eval", "grid", "--settings", "base,arrow", "--tasks", TASKS[0], "--limit", "3"]
    command += ["--library", str(grid.library), "--output", str(grid.output), "--dry-run"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "demo_goals_en" in out
    assert "Settings: 2 to run, 0 finished." in out
    assert not grid.output.exists()


def test_faults_are_those_of_a_run(grid: Grid) -> None:
    with pytest.raises(UsageError) as caught:
        plan_grid(replace(grid, settings=["gks:es"]))
    assert_sentence(caught.value, "subtract=es")
    samples = {TASKS[0]: [0], "gks_demo_gaols_en": [0]}
    with pytest.raises(UsageError) as caught:
        plan_grid(replace(grid, evaluation={"samples": samples}))
    assert_sentence(caught.value, "names gks_demo_gaols_en")
