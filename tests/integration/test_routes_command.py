"""`gks-eval routes` on tasks of both protocols."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from common import save_two_expert_recipe

from gks_eval.cli.main import main

HUB = Path(__file__).parents[1] / "data" / "hub"


@pytest.fixture
def routes(
    tiny_library: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Return ``run(*options)``: exit status and what was printed, in a process without a model."""
    library = str(tiny_library("phi3"))
    monkeypatch.chdir(HUB)

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr("gks_eval.model.lm.CREATED", 0)
        monkeypatch.setattr(sys, "argv", ["gks-eval", "routes", "--library", library, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is made."""

    def made(*_: object, **__: object) -> None:
        pytest.fail("a model was made")

    monkeypatch.setattr("gks_eval.model.lm.GksArrowLM.__init__", made)


def test_both_protocols_are_routed(
    routes: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = ["gks_paper_piqa", "gks_arc_easy"]
    output = tmp_path / "routes.json"
    status, printed = routes("--tasks", ",".join(names), "--limit", "2", "--output", str(output))
    assert status == 0, printed
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed  # nothing is cut, however narrow
    tasks = json.loads(output.read_text("utf-8"))["tasks"]
    assert list(tasks) == names
    assert all(task["tokens"] > 0 for task in tasks.values())
    for task in tasks.values():
        assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in task["mean_coefficient"])


def test_one_choice_per_sequence_needs_a_context(routes: Callable[..., tuple[int, str]]) -> None:
    setting = ("--setting", "gks:avg;level=sequence", "--limit", "1")
    status, printed = routes("--tasks", "gks_arc_easy", *setting)
    assert status == 0, printed
    status, printed = routes("--tasks", "gks_paper_piqa", *setting)
    assert status == 6
    assert "gks_paper_piqa, item 0" in printed
    assert "here the whole text is scored" in printed


@pytest.mark.usefixtures("no_model")
def test_a_task_that_only_generates_has_nothing_to_route(
    routes: Callable[..., tuple[int, str]],
) -> None:
    status, printed = routes("--tasks", "gks_bbh_word_sorting")
    assert status == 2
    assert "none of these is scored by log-likelihood" in printed


@pytest.mark.usefixtures("no_model")
def test_bad_arguments_are_refused_before_a_model_is_made(
    routes: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    task = ("--tasks", "gks_paper_piqa")
    (tmp_path / "text.txt").write_text("An owl.", "utf-8")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((*task, "--output", str(tmp_path)), "is a folder; name a file in it"),
        (("--text", str(tmp_path / "text.txt"), "--output", "x.json"), "leave it out with --text"),
        ((*task, "--setting", "arrow;library=x"), "use --library"),
    ]
    for options, said in cases:
        status, printed = routes(*options)
        assert status == 2
        assert said in printed


def test_a_task_that_fails_at_a_later_item_is_a_sentence(
    routes: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    rows = [{"q": "one", "n": 1}, {"q": "two", "n": 0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "late.yaml").write_text(
        f"""
task: fails_late
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{tmp_path}/rows.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ q }}}} {{{{ 1 / n }}}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
""",
        "utf-8",
    )
    status, printed = routes("--tasks", "fails_late", "--include-path", str(tmp_path))
    assert status != 0
    assert "lm-eval stopped" in printed
    assert "Traceback" not in printed


def test_tasks_that_are_not_routed_are_named(routes: Callable[..., tuple[int, str]]) -> None:
    status, printed = routes("--tasks", "gks_bbh_word_sorting,gks_paper_piqa", "--limit", "1")
    assert status == 0, printed
    assert "Left out, not scored by log-likelihood: gks_bbh_word_sorting." in printed


def test_accuracy_on_the_held_out_rows_of_a_recipe(
    routes: Callable[..., tuple[int, str]],
    tiny_base: Callable[[str], Path],
    tiny_library: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder, output = tmp_path / "library", tmp_path / "accuracy.json"
    shutil.copytree(tiny_library("phi3", experts=("one", "two")), folder)
    asked = ("--library", str(folder), "--accuracy", "--settings", "arrow;top_k=1, uniform")
    status, printed = routes(*asked)
    assert status == 2
    assert "has no recipe.yaml; name one with --recipe" in printed
    recipe = save_two_expert_recipe(folder, tiny_base("phi3"), rows=9, dropout=0.0)
    status, printed = routes(*asked)
    assert status == 6
    assert "holds no rows out; set `held_out`" in printed
    recipe.write_text(recipe.read_text("utf-8").replace("experts:", "experts:\n  held_out: 4", 1))
    status, printed = routes(*asked, "--limit", "3", "--every-layer", "--output", str(output))
    assert status == 0, printed
    assert "2 experts, 6 rows" in " ".join(printed.split())
    found = json.loads(output.read_text("utf-8"))
    assert found["schema"] == "gks_eval.routing_accuracy/1"
    assert found["experts"] == ["one", "two"]
    assert found["rows"] == {"one": 3, "two": 3}
    assert list(found["settings"]) == ["arrow;top_k=1", "uniform"]
    for one in found["settings"].values():
        # Both experts have the same rows, so every choice is right half of the time.
        assert one["tokens"] == pytest.approx([0.5] * len(one["layers"]))
        assert one["all_sequences"] == pytest.approx(0.5)


@pytest.mark.usefixtures("no_model")
def test_bad_arguments_of_accuracy(routes: Callable[..., tuple[int, str]]) -> None:
    task = ("--tasks", "gks_paper_piqa")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((), "give one of --tasks, --text and --accuracy"),
        ((*task, "--accuracy"), "give one of --tasks, --text and --accuracy"),
        ((*task, "--recipe", "x"), "--recipe is for --accuracy"),
        ((*task, "--every-layer"), "--every-layer is for --accuracy"),
        (("--accuracy", "--setting", "arrow,expert:alpha"), "does not choose among experts"),
        (("--accuracy", "--setting", "arrow,merge:mean"), "does not choose among experts"),
        (("--accuracy", "--setting", "base"), "does not route"),
    ]
    for options, said in cases:
        status, printed = routes(*options)
        assert status == 2
        assert said in printed
