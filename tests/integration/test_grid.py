"""`gks-eval grid` as users run it: real commands, kills in the middle, reruns."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common import MIXED, assert_sentence
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from torch.utils import collect_env

from gks_eval.errors import CompatibilityError, GksError, ResourceError, ResultsError, UsageError
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.tables.time_table import time_table
from gks_eval.grid import CELL_FILE, Grid, parse_settings, run_grid
from gks_eval.grid.cell import cell_request
from gks_eval.grid.evaluate import _quiet_git
from gks_eval.grid.kept import check_commit, differences
from gks_eval.grid.prepare import make_lm, prepare
from gks_eval.grid.settings import with_preset
from gks_eval.grid.table import accuracy_table
from gks_eval.grid.task_index import grid_content, task_manager
from gks_eval.grid.weightless import WeightlessLM
from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.registry import MERGES, ROUTERS
from gks_eval.method.setting import Setting
from gks_eval.model.tokenizing_lm import TokenizingLM
from gks_eval.scoring import plans
from gks_eval.util.grid_order import read_order
from gks_eval.util.profile_file import PHASES, read_profile

LibraryOf = Callable[..., Path]
TASKS = ["gks_demo_goals_en", "gks_demo_science_de"]
COMMAND = [sys.executable, "-c", "from gks_eval.cli.main import main; main()"]


def grid(library: Path, output: Path, settings: Sequence[str], **changes: Any) -> Grid:
    options: dict[str, Any] = {
        "tasks": TASKS,
        "library": str(library),
        "model_arguments": {"dtype": "float32", "batch_size": "8"},
        "evaluation": {"limit": 6, "bootstrap_iters": 0},
    }
    return Grid(settings=settings, output=output, **{**options, **changes})


def numbers(folder: Path) -> dict[str, Any]:
    """Scores of every sample, by task and item."""
    found = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[task] = [(row["doc_id"], row["resps"], row["acc"]) for row in rows]
    return found


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results_*.json")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_each_setting_gets_lm_evals_own_files(tiny_library: LibraryOf, tmp_path: Path) -> None:
    states: list[tuple[str, str]] = []
    folders = run_grid(
        grid(tiny_library("phi3"), tmp_path, ["base", "arrow", "gks:en+de;rule=delta;top_k=2"]),
        lambda cell, state: states.append((cell.label, state)),
    )
    assert [f.name for f in folders] == ["base", "arrow", "gks-en+de_rule-delta_top_k-2"]
    assert read_order(tmp_path) == [f.name for f in folders]
    assert [state for _, state in states] == ["running", "done"] * 3
    scored = [numbers(folder) for folder in folders]
    assert all(set(found) == set(TASKS) for found in scored)
    assert all(len(rows) == 6 for found in scored for rows in found.values())
    assert scored[0] != scored[1] != scored[2]
    last = results(folders[2])
    assert last["config"]["model"] == "gks_arrow"
    # Of the evaluation, not of the writing alone.
    spent = json.loads((folders[2] / CELL_FILE).read_text("utf-8"))["spent"]["seconds"]
    assert 0 < spent < float(last["total_evaluation_time_seconds"]) + 0.1
    assert last["config"]["gks_eval"]["setting"]["top_k"] == 2
    assert "subtract=en+de" in last["config"]["model_args"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    table = accuracy_table(folders)
    assert [column.header for column in table.columns] == [
        "task", "base", "arrow", "gks:en+de;rule=delta;top_k=2",
    ]  # fmt: skip
    assert table.row_count == len(TASKS)
    accuracy = sum(row[2] for row in scored[1][TASKS[0]]) / 6
    shown = list(table.columns[2].cells)
    assert f"{100 * accuracy:.1f}" in shown[0]


def test_a_grid_gives_what_single_runs_give(tiny_library: LibraryOf, tmp_path: Path) -> None:
    """Swapping settings on one base must not differ from loading it for each."""
    library = tiny_library("phi3")
    together = run_grid(grid(library, tmp_path / "all", ["arrow", "gks:avg;preset=exact", "base"]))
    for folder in together:
        label = json.loads((folder / CELL_FILE).read_text())["label"]
        (alone,) = run_grid(grid(library, tmp_path / f"alone-{folder.name}", [label]))
        assert numbers(alone) == numbers(folder)


def test_the_command_runs_adapters_of_different_layers(
    tiny_library: LibraryOf, tmp_path: Path
) -> None:
    library = tiny_library("llama", adapters=MIXED)
    settings = ["base", "gks:avg;preset=exact", "merge:mean", "expert:gamma"]

    def command(wanted: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "grid", "--library", str(library), "--settings", ",".join(wanted),
             "--tasks", ",".join(TASKS), "--limit", "6", "--model-args", "dtype=float32",
             "--batch-size", "8", "--output", str(tmp_path / "all")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = command(settings)
    assert done.returncode == 0, done.stderr
    assert all(setting in done.stdout for setting in settings)
    found = {
        folder.name: numbers(folder) for folder in (tmp_path / "all").iterdir() if folder.is_dir()
    }
    assert len({str(scores) for scores in found.values()}) == len(settings)
    for setting in settings[1:3]:
        (alone,) = run_grid(grid(library, tmp_path / f"alone-{setting[:5]}", [setting]))
        assert numbers(alone) == found[alone.name]
    refused = command(["gks:avg"])
    assert refused.returncode == CompatibilityError.exit_code
    assert "which 'alpha' does not update: combine=factors needs" in refused.stderr


def test_requests_are_made_once_for_all_settings(
    tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()
    for owner, name in (
        (TaskManager, "load"),
        (Task, "build_all_requests"),
        (TokenizingLM, "_encode_many"),
        (plans, "make_plan"),
        (collect_env, "get_pretty_env_info"),
    ):
        monkeypatch.setattr(owner, name, _counted(getattr(owner, name), made))
    settings = ["base", "arrow", "gks:avg", "uniform;scoring=plain", "expert:alpha"]
    folders = run_grid(grid(tiny_library("phi3"), tmp_path / "all", settings))
    # One load is for the content of the tasks, which says whether a finished setting is kept.
    expected = {"load": 2, "build_all_requests": len(TASKS), "_encode_many": 1, "make_plan": 1}
    assert made == expected | {"get_pretty_env_info": 1}
    for folder, setting in zip(folders, settings, strict=True):
        (alone,) = run_grid(grid(tiny_library("phi3"), tmp_path / folder.name, [setting]))
        assert numbers(folder) == numbers(alone)
        assert results(folder)["results"] == results(alone)["results"]
        assert (
            json.loads((folder / CELL_FILE).read_text("utf-8"))["request"]
            == json.loads((alone / CELL_FILE).read_text("utf-8"))["request"]
        )


def _counted(function: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[function.__name__] += 1
        return function(*args, **kwargs)

    return counted


def test_a_profile_adds_up_and_changes_no_number(tiny_library: LibraryOf, tmp_path: Path) -> None:
    settings, hook = ["base", "arrow"], RoutedUpdate.__call__
    asked = grid(tiny_library("phi3"), tmp_path / "measured", settings, profile=True)
    measured = run_grid(asked)
    assert RoutedUpdate.__call__ is hook
    for folder, plain in zip(
        measured, run_grid(grid(tiny_library("phi3"), tmp_path / "plain", settings)), strict=True
    ):
        assert numbers(folder) == numbers(plain)
        assert read_profile(plain) is None
        found = read_profile(folder)
        assert found is not None
        assert list(found.phases) == list(PHASES)
        assert math.fsum(found.phases.values()) <= found.seconds * (1 + 1e-9)
        assert all(found.phases[name] > 0 for name in ("transformer", "head", "writing"))
        assert (found.phases["router"] > 0) == (folder.name == "arrow")
        assert (found.phases["prompts"] > 0) == (folder.name == "base")  # the first makes them
        spent = json.loads((folder / CELL_FILE).read_text("utf-8"))["spent"]
        assert found.distinct_tokens == spent["distinct_tokens"] < found.tokens
    table = time_table(find_runs([str(tmp_path / "measured")]))
    assert table is not None
    assert [row[0] for row in table.rows] == settings
    assert time_table(find_runs([str(tmp_path / "plain")])) is None


def test_a_rerun_keeps_what_is_done(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("phi3")
    (first,) = run_grid(grid(library, tmp_path, ["arrow"]))
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    states: list[str] = []
    run_grid(grid(library, tmp_path, ["arrow", "base"]), lambda _, state: states.append(state))
    assert states == ["kept", "running", "done"]
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_other_arguments_do_not_pass_for_the_same_cell(
    tiny_library: LibraryOf, tmp_path: Path
) -> None:
    library = tiny_library("phi3")
    run_grid(grid(library, tmp_path, ["arrow"]))
    with pytest.raises(ResultsError) as caught:
        run_grid(
            grid(library, tmp_path, ["arrow"], evaluation={"limit": 5.0, "bootstrap_iters": 0})
        )
    assert_sentence(caught.value, str(tmp_path / "arrow"), "(--limit: 6 before, 5 now)", "--output")
    (tmp_path / "arrow" / CELL_FILE).write_text('{"request": ')
    with pytest.raises(ResultsError) as broken:
        run_grid(grid(library, tmp_path, ["arrow"]))
    assert_sentence(broken.value, CELL_FILE, "delete")


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A folder with the tasks `toy` and `other`, their functions and their data."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("toy", "other"):
        rows = [{"q": f"{name} {n}", "c": ["yes", "no"], "a": n % 2} for n in range(3)]
        write_rows(folder / f"{name}.jsonl", rows)
        (folder / f"{name}.yaml").write_text(
            f"include: _shared_yaml\ntask: {name}\n"
            f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        )
    (folder / "_shared_yaml").write_text(
        "dataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "Q: {{q}} A:"\ndoc_to_choice: !function own.choices\ndoc_to_target: a\n'
    )
    (folder / "own.py").write_text("import helper_of_own as h\ndef choices(doc): return h.f(doc)\n")
    (folder / "helper_of_own.py").write_text("def f(doc): return doc['c']\n")
    (folder / "both.yaml").write_text(
        "group: both\ntask: [toy, other]\naggregate_metric_list: [{metric: acc}]\n"
    )
    return folder


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


EDITS: list[tuple[str, Callable[[Path], None], str | None]] = [
    ("include", lambda d: edit(d / "_shared_yaml", "Q: {{q}}", "{{q}}"), "task other: doc_to_text"),
    ("code", lambda d: edit(d / "own.py", "h.f(doc)", "h.f(doc)[:]"), "task toy: doc_to_choice"),
    ("helper", lambda d: edit(d / "helper_of_own.py", "['c']", "['c'][:]"), "doc_to_choice"),
    ("comment", lambda d: edit(d / "own.py", "import", "# of rows\nimport"), None),
    ("row", lambda d: edit(d / "toy.jsonl", "toy 1", "toy x"), "task toy: its data"),
    ("unscored row", lambda d: edit(d / "toy.jsonl", "toy 2", "toy x"), None),
    ("group", lambda d: edit(d / "both.yaml", "metric: acc", "metric: acc, weight_by_size: false"),
     "group both: its members or means"),
]  # fmt: skip


@pytest.mark.parametrize(("_name", "change", "named"), EDITS, ids=[e[0] for e in EDITS])
def test_what_changed_in_a_task_is_named(
    _name: str,
    change: Callable[[Path], None],
    named: str | None,
    own_task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(own_task)
    asked = grid(
        tmp_path, tmp_path, ["base"], tasks=["both"], include_paths=[str(own_task)],
        evaluation={"limit": 2},
    )  # fmt: skip

    def content() -> dict[str, Any]:
        for module in ("helper_of_own", str(own_task / "own")):
            sys.modules.pop(module, None)  # another run is another process
        return {"content": grid_content(task_manager(["both"], asked.include_paths), asked)}

    before = content()
    assert before == content()
    change(own_task)
    found = list(differences(before, content()))
    if named is None:
        assert found == []
    else:
        assert any(named in text for text in found), found


def test_a_setting_of_a_changed_task_is_not_kept(
    own_task: Path, tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(own_task)
    asked = grid(
        tiny_library("phi3"), tmp_path / "out", ["base"], tasks=["toy"],
        include_paths=[str(own_task)], evaluation={"bootstrap_iters": 0},
    )  # fmt: skip
    (folder,) = run_grid(asked)
    edit(own_task / "toy.yaml", "task: toy", "task: toy\ndoc_to_text: q")
    with (own_task / "toy.jsonl").open("a") as file:
        file.write('{"q": "toy 3", "c": ["yes", "no"], "a": 0}\n')
    states: list[str] = []
    with pytest.raises(ResultsError) as caught:
        run_grid(replace(asked, settings=["arrow", "base"]), lambda _, state: states.append(state))
    assert not states  # nothing runs before the refusal
    changed = "task toy: doc_to_text, 3 items before, 4 now"
    assert_sentence(caught.value, str(folder), changed, "delete it")
    shutil.rmtree(folder)
    folders = run_grid(replace(asked, settings=["arrow", "base"]))
    assert [results(f)["n-samples"]["toy"]["effective"] for f in folders] == [4, 4]


def test_a_folder_of_an_older_version_is_kept_with_a_warning(
    tiny_library: LibraryOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = tiny_library("phi3")
    (folder,) = run_grid(grid(library, tmp_path, ["base"]))
    record = json.loads((folder / CELL_FILE).read_text("utf-8"))
    for key in ("content", "folders"):
        del record["request"][key]
    record["request"]["include_paths"] = []
    (folder / CELL_FILE).write_text(json.dumps(record), "utf-8")
    states: list[str] = []
    run_grid(grid(library, tmp_path, ["base"]), lambda _, state: states.append(state))
    assert states == ["kept"]
    (told,) = [r.getMessage() for r in caplog.records if r.name == "gks_eval.grid.kept"]
    assert told.startswith(f"{folder} is kept unchecked")


def test_another_tokenizer_in_the_same_folder_is_not_the_same_cell(
    tiny_library: LibraryOf, tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "tokenizer"
    shutil.copytree(tiny_base("phi3"), copy)
    arguments = {"dtype": "float32", "batch_size": "8", "tokenizer": str(copy)}
    asked = grid(tiny_library("phi3"), tmp_path / "out", ["base"], model_arguments=arguments)
    run_grid(asked)
    edit(copy / "chat_template.jinja", "<|", "<|")
    with pytest.raises(ResultsError) as caught:
        run_grid(asked)
    assert_sentence(caught.value, "(tokenizer)")


def test_two_commits_of_a_base_are_not_mixed(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("phi3")
    (folder,) = run_grid(grid(library, tmp_path, ["base"]))
    record = json.loads((folder / CELL_FILE).read_text("utf-8"))
    assert record["commit"] is None  # a local folder
    (folder / CELL_FILE).write_text(json.dumps({**record, "commit": "a" * 40}), "utf-8")
    check_commit([folder], None)
    check_commit([folder], "a" * 40)
    with pytest.raises(ResultsError) as caught:
        check_commit([folder], "b" * 40)
    assert_sentence(caught.value, str(folder), "aaaaaaaaaaaa", "revision=")


def test_another_base_is_not_asked_for_the_revision_of_the_library_s(
    tiny_library: LibraryOf, tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    library = tmp_path / "library"
    shutil.copytree(tiny_library("phi3"), library)
    with (library / "library.yaml").open("a", encoding="utf-8") as file:
        file.write(f"revision: {'a' * 40}\n")
    other = tmp_path / "other"
    shutil.copytree(tiny_base("phi3"), other)
    for n, (arguments, revision) in enumerate((({}, "a" * 40), ({"pretrained": str(other)}, None))):
        asked = grid(library, tmp_path / str(n), ["base"], model_arguments=arguments)
        *_, base = prepare(asked)
        assert base.revision == revision
        lm = make_lm(WeightlessLM, {"router": "none"}, None, base, asked)
        assert lm.get_model_info()["gks_eval"]["revision"] == (revision or "main")


def test_git_is_not_heard_where_there_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval import evaluator

    monkeypatch.chdir(tmp_path)
    with _quiet_git():
        assert evaluator.get_git_commit_hash() is None
    assert capfd.readouterr().err == ""


def test_settings_that_differ_in_n_say_so(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("phi3")
    folders = [
        run_grid(grid(library, tmp_path / str(n), ["base"], evaluation={"limit": n}))[0]
        for n in (3, 5)
    ]
    table = accuracy_table(folders)
    assert "DIFFER IN n" in str(table.caption)
    assert list(table.columns[1].cells) == ["3-5"] * len(TASKS)
    for column, n in ((2, 3), (3, 5)):
        assert all(str(cell).endswith(f" ({n})") for cell in table.columns[column].cells)
    alone = accuracy_table(folders[:1])
    assert str(alone.caption) == "Accuracy in percent ± standard error; n = 3 items per task."


def test_another_base_is_not_the_same_cell(tiny_library: LibraryOf, tmp_path: Path) -> None:
    (kept,) = run_grid(grid(tiny_library("phi3"), tmp_path, ["base"]))
    with pytest.raises(ResultsError) as caught:
        run_grid(grid(tiny_library("llama"), tmp_path, ["base"]))
    assert_sentence(caught.value, str(kept), "base")


def test_libraries_of_two_bases_are_not_run_on_one(tiny_library: LibraryOf, tmp_path: Path) -> None:
    settings = ["arrow", f"arrow;library={tiny_library('llama')}"]
    with pytest.raises(UsageError) as caught:
        run_grid(grid(tiny_library("phi3"), tmp_path, settings))
    assert_sentence(caught.value, "was made for", "--pretrained")


def test_what_a_killed_run_of_other_arguments_left_is_dropped(
    tiny_library: LibraryOf, tmp_path: Path
) -> None:
    partial = tmp_path / ".arrow.partial"
    partial.mkdir()
    (partial / "request.json").write_text("{}")
    (partial / "requests_rank0.db").write_bytes(b"no database at all")
    (folder,) = run_grid(grid(tiny_library("phi3"), tmp_path, ["arrow"]))
    assert set(numbers(folder)) == set(TASKS)


def test_samples_that_were_cut_short_are_not_published(
    tiny_library: LibraryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval swallows a failed write: what it left must not pass for whole."""
    from lm_eval.loggers import EvaluationTracker

    def cut(self: Any, task_name: str, samples: Any) -> None:
        whole(self, task_name=task_name, samples=samples)
        (path,) = Path(self.output_path).parent.glob(f"samples_{task_name}_*.jsonl")
        path.write_bytes(path.read_bytes()[:-20])

    whole = EvaluationTracker.save_results_samples
    monkeypatch.setattr(EvaluationTracker, "save_results_samples", cut)
    with pytest.raises(ResourceError) as caught:
        run_grid(grid(tiny_library("phi3"), tmp_path, ["base"]))
    assert_sentence(caught.value, "base", "disk full")
    assert not (tmp_path / "base").exists()


def test_single_items_of_a_task(tiny_library: LibraryOf, tmp_path: Path) -> None:
    library = tiny_library("phi3")
    (whole,) = run_grid(grid(library, tmp_path / "whole", ["arrow"]))
    wanted = {TASKS[0]: [1, 4], TASKS[1]: [0, 2, 3]}
    some = tmp_path / "items.json"
    some.write_text(json.dumps({task: items[::-1] for task, items in wanted.items()}), "utf-8")
    command = [*COMMAND, "grid", "--settings", "arrow", "--tasks", ",".join(TASKS)]
    command += ["--library", str(library), "--output", str(tmp_path / "some")]
    command += ["--model-args", "dtype=float32", "--samples", str(some)]
    subprocess.run(command, check=True, capture_output=True)
    every, found = numbers(whole), numbers(tmp_path / "some" / "arrow")
    for task, items in wanted.items():
        assert [(doc, right) for doc, _, right in found[task]] == [
            (doc, right) for doc, _, right in every[task] if doc in items
        ]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"gks_demo_goals_en": [0], "gks_demo_gaols_en": [0]}, "names gks_demo_gaols_en"),
        ({"gks_demo_goals_en": [0, 4000]}, "--samples should be in the interval"),
    ],
)
def test_items_that_are_not_there(
    samples: dict[str, list[int]], words: str, tiny_library: LibraryOf, tmp_path: Path
) -> None:
    asked = grid(tiny_library("phi3"), tmp_path, ["base"], evaluation={"samples": samples})
    with pytest.raises(UsageError) as caught:
        run_grid(replace(asked, tasks=TASKS[:1]))
    assert_sentence(caught.value, words)
    assert not str(caught.value).endswith("..")
    assert not (tmp_path / "base").exists()


def test_no_token_is_written(tiny_library: LibraryOf, tmp_path: Path) -> None:
    arguments = {"dtype": "float32", "batch_size": "8", "token": "hf_SECRET"}
    run_grid(grid(tiny_library("phi3"), tmp_path, ["base"], model_arguments=arguments))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_SECRET" not in path.read_bytes(), path


def test_names_of_folders_tell_settings_apart() -> None:
    cells = parse_settings(["arrow;library=/a/b", "arrow;library=/a-b", "gks:en;top_k=2"])
    assert len({cell.slug for cell in cells}) == 3
    assert cells[2].slug == "gks-en_top_k-2"
    assert all("/" not in cell.slug for cell in cells)


def test_a_short_name_is_a_folder_s_and_plays_no_part_in_the_numbers(tmp_path: Path) -> None:
    texts = ["short=gks:en;rule=delta", " two = expert:a ", "gks:en;rule=delta"]
    named, other, plain = parse_settings(texts)
    assert (named.label, named.slug) == ("short", "short")
    assert (other.label, other.slug, other.setting.router) == ("two", "two", "a")
    assert (plain.label, plain.slug) == ("gks:en;rule=delta", "gks-en_rule-delta")
    assert (named.setting, named.others) == (plain.setting, plain.others)
    whole = grid(tmp_path, tmp_path, texts)
    assert cell_request(named, None, {}, {}, whole) == cell_request(plain, None, {}, {}, whole)


def test_every_kind_of_setting_takes_a_short_name() -> None:
    routers = [text for name in ROUTERS.names() for text in (name, f"{name}:en;rule=delta")]
    kinds = ["base", "gks:en", "expert:a", *(f"merge:{name}" for name in MERGES.names()), *routers]
    for named, plain in zip(
        parse_settings([f"s{n}={text}" for n, text in enumerate(kinds)]),
        parse_settings(kinds),
        strict=True,
    ):
        assert named.label.startswith("s")
        assert named.setting == plain.setting
    for name in ROUTERS.names():
        with pytest.raises(UsageError, match="short name"):
            parse_settings([f"{name}=base"])


@pytest.mark.parametrize("moment", ["first request cached", "first cell done"])
def test_a_killed_grid_goes_on_where_it_stopped(
    moment: str, tiny_library: LibraryOf, tmp_path: Path
) -> None:
    library = tiny_library("phi3")
    settings = ["arrow", "gks:avg", "uniform"]
    output = tmp_path / "killed"
    command = [
        *COMMAND, "grid", "--settings", ",".join(settings), "--tasks", ",".join(TASKS),
        "--library", str(library), "--output", str(output), "--batch-size", "1",
        "--model-args", "dtype=float32", "--limit", "15",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    target = (
        output / ".arrow.partial" / "requests_rank0.db"
        if moment == "first request cached"
        else output / "arrow" / CELL_FILE
    )
    deadline = time.monotonic() + 400
    while not target.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert target.exists(), errors.decode()
    done = {path.name for path in output.iterdir() if (path / CELL_FILE).exists()}
    assert len(done) < len(settings)
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert again.returncode == 0, again.stderr
    for name in done:
        assert f"{name}: kept" in again.stderr
    undisturbed = run_grid(
        grid(
            library,
            tmp_path / "whole",
            settings,
            evaluation={"limit": 15.0},
            model_arguments={"dtype": "float32", "batch_size": "1"},
        )
    )
    for folder in undisturbed:
        assert numbers(output / folder.name) == numbers(folder)


def test_two_grids_do_not_share_an_output(tiny_library: LibraryOf, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(ResourceError) as caught:
        run_grid(grid(tiny_library("phi3"), tmp_path, ["arrow"]))
    assert_sentence(caught.value, str(tmp_path), "another grid")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ([], ["--settings is empty"]),
        (["arow"], ["'arow'", "did you mean 'arrow'"]),
        (["gks"], ["gks", "languages"]),
        (["gks:"], ["gks", "languages"]),
        (["expert"], ["expert", "name"]),
        (["base:en"], ["base", "colon"]),
        (["gks:en;top_k"], ["top_k", "argument=value"]),
        (["gks:en;top_k=x"], ["top_k=x", "whole number"]),
        (["gks:en;dtype=float16"], ["dtype", "--model-args"]),
        (["gks:en;topk=2"], ["topk", "did you mean 'top_k'"]),
        (["arrow", "arrow"], ["arrow", "twice"]),
        (["gks:none"], ["gks:none", "arrow"]),
        (["base;router=arrow"], ["base", "no router"]),
        (["gks:en", "rule=delta"], ["rule=", "after ';'"]),
        (["short=gsk:en"], ["short=", "no kind"]),
        (["a/b=gks:en"], ["'a/b'", "short name"]),
        (["..=gks:en"], ["'..'", "short name"]),
        (["nul=gks:en"], ["'nul'", "short name"]),
        (["arrow=gks:en"], ["'arrow'", "short name"]),
        (["gks-en=gks:de", "gks:en"], ["twice"]),
        (["one=gks:de", "One=gks:en"], ["twice"]),
    ],
    ids=str,
)
def test_the_grammar_of_settings(settings: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(settings)
    assert_sentence(caught.value, *parts)


def test_one_preset_for_all_settings_is_as_if_written_after_each() -> None:
    texts = ["base", "b=base", "gks:en", "s=spectr:en;top_k=2", "arrow;preset=peft", "x=merge:mean"]
    written = ["base", "b=base", "gks:en;preset=exact", "s=spectr:en;top_k=2;preset=exact",
               "arrow;preset=peft", "x=merge:mean;preset=exact"]  # fmt: skip
    assert [with_preset(text, "exact") for text in texts] == written
    cells = parse_settings([with_preset(text, "exact") for text in texts])
    assert cells == parse_settings(written)
    assert cells[2].setting.identity() == Setting.parse("gks:en;preset=exact")[0].identity()
    with pytest.raises(UsageError, match="preset=exat is unknown; did you mean 'exact'"):
        parse_settings([with_preset("gks:en", "exat")])


@pytest.mark.parametrize(
    ("settings", "tasks", "parts"),
    [
        (["base", "gks:es"], TASKS, ["subtract=es", "en, de, fr"]),
        (["base", "expert:alpa"], TASKS, ["alpa", "did you mean 'alpha'"]),
        (["base", "arrow;top_k=9"], TASKS, ["top_k=9", "4 experts"]),
        (["base"], ["gks_demo_goal_en"], ["gks_demo_goal_en", "did you mean 'gks_demo_goals_en'"]),
    ],
    ids=str,
)
def test_faults_are_found_before_the_first_setting_runs(
    settings: list[str], tasks: list[str], parts: list[str], tiny_library: LibraryOf, tmp_path: Path
) -> None:
    with pytest.raises(GksError) as caught:
        run_grid(grid(tiny_library("phi3"), tmp_path / "out", settings, tasks=tasks))
    assert_sentence(caught.value, *parts)
    assert not list(tmp_path.glob("out/*/results_*"))


def test_the_command_says_one_sentence_and_exits_with_the_errors_code(tmp_path: Path) -> None:
    command = [*COMMAND, "grid", "--settings", "arow", "--tasks", "x", "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == UsageError.exit_code
    assert run.stderr.startswith("gks-eval: error: setting 'arow'")
    assert "Traceback" not in run.stderr
