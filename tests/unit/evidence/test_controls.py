"""From the runs of a treatment and its controls to what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import assert_sentence
from evidence_factory import write_run

from gks_eval.errors import ResultsError
from gks_eval.evidence.controls import judge_runs
from gks_eval.evidence.question import (
    ControlsFile,
    Finding,
    Question,
    QuestionControl,
    check_question,
)
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.tables.controls_text import controls_table

Scores = Mapping[str, Sequence[float]]


def control(name: str, *settings: str, **fields: Any) -> QuestionControl:
    return QuestionControl.model_validate(
        {"role": "subtraction", "over": "draws", **fields, "name": name, "settings": settings}
    )


def question(*controls: QuestionControl, **fields: Any) -> Question:
    values = {
        "treatment": "gks:avg", "library": "l", "library_hash": "0" * 64, "tasks": ("a", "b"),
        "seeds": 2, "evaluation": {}, "margin": 0.02, "controls": controls, "left_out": (),
    }  # fmt: skip
    return Question.model_validate(values | fields)


def found(folder: Path, asked: Question, runs: Mapping[str, Scores], **options: Any) -> Finding:
    for name, tasks in runs.items():
        write_run(folder / name, tasks, **options)
    return judge_runs(asked, {name: one_run(str(folder / name)) for name in runs})


def test_draws_are_averaged_and_the_best_expert_is_cross_fitted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("gks:avg", "arrow", "r0", "r1", "e0", "e1")
    drawn = {
        name: {"a": rng.integers(0, 2, 6) * 1.0, "b": rng.integers(0, 2, 30) * 1.0}
        for name in names
    }
    asked = question(
        control("no subtraction", "arrow"),
        control("general=random", "r0", "r1"),
        control("best single expert", "e0", "e1", role="routing", over="experts"),
        left_out=("general=other: library l has one expert",),
    )
    runs = {name: {t: list(map(float, s)) for t, s in tasks.items()}
            for name, tasks in drawn.items()}  # fmt: skip
    finding = found(tmp_path, asked, runs)

    def mean(name: str) -> float:
        return float(drawn[name]["a"].mean() + drawn[name]["b"].mean()) / 2

    best = 0.0
    for task in "ab":
        for half in (0, 1):
            one, two = drawn["e0"][task], drawn["e1"][task]
            chosen = one if one[1 - half :: 2].mean() >= two[1 - half :: 2].mean() else two
            best += chosen[half::2].mean() / 4  # the halves are of one size
    expected = [mean("arrow"), (mean("r0") + mean("r1")) / 2, best]
    assert finding.score == pytest.approx(mean("gks:avg"))
    assert [one.score for one in finding.contrasts] == pytest.approx(expected)
    changes = [finding.score - score for score in expected]
    assert [one.difference for one in finding.contrasts] == pytest.approx(changes)
    assert [one.draws for one in finding.contrasts] == [1, 2, 2]
    assert finding.notes == ("general=other: library l has one expert; this control did not run",)
    table = controls_table(asked, finding)
    assert [row[0] for row in table.rows] == [
        "no subtraction", "general=random (2)", "best single expert (2)",
    ]  # fmt: skip


def test_a_group_by_size_weighs_by_size(tmp_path: Path) -> None:
    runs = {"gks:avg": {"a": [1.0] * 2, "b": [0.0, 1.0] * 4}, "arrow": {"a": [0.0] * 2,
            "b": [1.0, 1.0] * 4}}  # fmt: skip
    groups = {"g": (("a", "b"), True)}
    asked = question(control("no subtraction", "arrow"), tasks=("g",))
    finding = found(tmp_path, asked, runs, groups=groups)
    assert [task.weight for task in finding.tasks] == [0.2, 0.8]
    assert finding.contrasts[0].difference == pytest.approx(0.2 * 1 + 0.8 * -0.5)
    even = found(tmp_path, question(control("no subtraction", "arrow")), runs, groups=groups)
    assert even.contrasts[0].difference == pytest.approx((1 - 0.5) / 2)


def test_where_lower_is_better_the_lower_run_wins(tmp_path: Path) -> None:
    runs = {"gks:avg": {"a": [0.1, 0.2] * 40}, "arrow": {"a": [0.5, 0.9] * 40}}
    asked = question(control("no subtraction", "arrow"))
    finding = found(tmp_path, asked, runs, metric="brier_score", higher_is_better=False)
    assert finding.score == pytest.approx(1 - 0.15)
    assert finding.contrasts[0].difference == pytest.approx(0.55)
    assert finding.contrasts[0].state == "beaten"


def test_a_score_beyond_0_and_1_has_no_place_in_the_mean(tmp_path: Path) -> None:
    runs = {"gks:avg": {"a": [12.0, 3.0]}, "arrow": {"a": [10.0, 4.0]}}
    with pytest.raises(ResultsError) as caught:
        found(tmp_path, question(control("no subtraction", "arrow")), runs, metric="bleu")
    assert_sentence(caught.value, "a is left out of the mean: bleu does not lie between 0 and 1")


def test_runs_of_other_items_are_refused(tmp_path: Path) -> None:
    runs = {"gks:avg": {"a": [1.0, 0.0, 1.0]}, "arrow": {"a": [1.0, 0.0]}}
    with pytest.raises(ResultsError) as caught:
        found(tmp_path, question(control("no subtraction", "arrow")), runs)
    assert_sentence(caught.value, "are not comparable in a: a split of 3 items against 2")


def test_another_question_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    asked = question(control("no subtraction", "arrow"))
    assert check_question(tmp_path, asked) is None
    file = tmp_path / "controls.json"
    file.write_text(ControlsFile(question=asked).to_json(), "utf-8")
    check_question(tmp_path, asked)
    check_question(tmp_path, asked.model_copy(update={"library": "another/path/l"}))
    for changed in ({"margin": 0.01}, {"seeds": 3}, {"library_hash": "1" * 64}):
        with pytest.raises(ResultsError) as caught:
            check_question(tmp_path, asked.model_copy(update=changed))
        name = next(iter(changed)).replace("_", " ")
        assert_sentence(caught.value, f"another question (other {name})", "another --output")
    file.write_text("{}", "utf-8")
    with pytest.raises(ResultsError) as caught:
        check_question(tmp_path, asked)
    assert_sentence(caught.value, "controls.json is no file of controls", "delete it")
