"""What `gks-eval train` shows, fed with events of our own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from gks_eval.cli._training_view import TrainingView, show_estimate
from gks_eval.training.estimate import estimate
from gks_eval.training.jobs import make_plan
from gks_eval.training.run_callback import Step
from gks_eval.training.whole_library import TrainingOutcome

RECORD: dict[str, Any] = {
    "steps": 4, "tokens_per_second": 100.0, "peak_memory_mb": 512, "loss_first": 3.0,
    "loss_last": 1.0, "rows": 12, "sources_cut": 2, "targets_too_long": 7, "texts_too_short": 0,
    "first_too_long": [3, 8, 21, 22, 40],
    "held_out": {"n": 2, "base": 3.1, "adapter": 1.2},
}  # fmt: skip


def shown(recipe: Path, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=150, color_system=None)
    plan = make_plan(recipe)
    with TrainingView(console) as view:
        view.planned(plan, plan.jobs)
        view.skipped(plan.jobs[0], "finished before")
        view.started(plan.jobs[1], steps=4)
        view.step(plan.jobs[1], Step(1, 4, 2.5, 100.0, 65.0))
        view._bars.refresh()  # on its own it draws ten times a second
        view.finished(plan.jobs[1], RECORD)
    view.table(TrainingOutcome(("experts/upper",), ("general/en",), None), Path("lib"))
    return file.getvalue()


def test_on_a_terminal_there_is_a_bar_with_loss_speed_and_time_left(
    recipe_file: Callable[..., Path],
) -> None:
    text = shown(recipe_file(), terminal=True)
    assert "loss 2.500  100 tokens/s  1:05 left" in text
    # One adapter is being trained (65 s left) and two are to come, as long as that one.
    assert "about 3:15 left" in text


def test_elsewhere_there_is_a_line_an_adapter_and_what_was_cut(
    recipe_file: Callable[..., Path],
) -> None:
    text = shown(recipe_file(), terminal=False)
    assert "experts/copy: finished before" in text
    assert "loss 3.000 -> 1.000, held-out loss 3.100 -> 1.200" in text
    assert "7 (row 3, 8, 21, 22, 40, ...)" in text
    assert "lib: not yet a library, still missing general/en" in text
    assert "tokens/s  " not in text
    assert "experts/copy: fewer than 5 optimiser steps" not in text
    assert "experts/upper: fewer than 5 optimiser steps teach almost nothing" in text


def test_a_shared_loftq_start_is_remarked(recipe_file: Callable[..., Path]) -> None:
    recipe = recipe_file(adapter={"init": "loftq"}, load={"quantization": "nf4"})
    assert "subtracting one from the other removes this correction" in shown(recipe, terminal=False)


def test_a_dry_run_says_where_few_steps_teach_nothing(recipe_file: Callable[..., Path]) -> None:
    found = estimate(make_plan(recipe_file(schedule={"accumulation": 12})))
    assert {job.key: job.steps for job in found.jobs}["experts/copy"] == 2
    console = Console(file=io.StringIO(), width=150)
    show_estimate(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "experts/copy" in text.partition("fewer than 5 optimiser steps")[0].splitlines()[-1]
    assert "lower the schedule's accumulation" in text
