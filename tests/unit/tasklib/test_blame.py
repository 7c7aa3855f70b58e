"""A mistake in a task's YAML or functions is reported with the task, the item and the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common import assert_sentence
from lm_eval.tasks import TaskManager

from gks_eval.cli._lm_eval import lm_eval_errors
from gks_eval.errors import DataError, UsageError
from gks_eval.tasklib.named import leaves, warn_of_unreadable

FUNCTIONS = """
def text(doc):
    return doc["q"][5]

def stop(rows):
    raise StopIteration

def rows(dataset):
    return dataset.map(lambda row: {"z": row["nope"]})

def late(doc):
    return doc["q"][int(doc["q"][1]) and 9 or 0]
"""


def write_task(folder: Path, **changes: str) -> None:
    """Write the task `toy` with `changes` of its YAML's keys, and its data."""
    rows = [{"q": f"q{n}", "c": ["yes", "no"], "a": n % 2} for n in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(FUNCTIONS)
    keys = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": f"{{data_files: {{test: {folder / 'rows.jsonl'}}}}}",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "c",
        "doc_to_target": "a",
    }
    lines = [f"{name}: {value}" for name, value in (keys | changes).items()]
    (folder / "toy.yaml").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"doc_to_target": "5"},
            "item 0: doc_to_target gives 5, and doc_to_choice has 2 choices, counted from 0; "
            "correct doc_to_target",
        ),
        ({"doc_to_choice": '["", "x"]'}, "item 0: doc_to_choice gives an empty choice; correct"),
        (
            {"doc_to_text": '"{{question}}"'},
            "item 0: 'question' is undefined (columns: q, c, a); correct doc_to_text",
        ),
        ({"doc_to_text": "!function own.text"}, "item 0: IndexError: string index out of range"),
        ({"doc_to_text": "!function own.late"}, "item 1: IndexError: string index out of range"),
        ({"doc_to_text": "!function own.none"}, "has no function 'none'"),
        (
            {"test_split": "validation"},
            "its data set has no split 'validation'; it has test; correct test_split",
        ),
        ({"process_docs": "!function own.rows"}, "KeyError: 'nope'; correct process_docs"),
        (
            {"process_docs": "!function own.stop"},
            "in task toy: StopIteration; correct process_docs",
        ),
        (
            {"metric_list": "[{metric: accuracy}]"},
            "no metric 'accuracy'; correct metric_list",
        ),
        ({"dataset_kwargs": "{data_files: no.jsonl}"}, "correct dataset_path, dataset_name"),
        ({"output_type": "multiple-choice"}, "Got invalid output_type 'multiple-choice'"),
        ({"doc_to_tekst": "q"}, "unexpected keyword argument 'doc_to_tekst'"),
    ],
    ids=str,
)
def test_the_task_and_its_file_are_named(
    changes: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_task(tmp_path, **changes)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(DataError) as caught, lm_eval_errors():
        manager.load(["toy"])["tasks"]["toy"].build_all_requests()
    assert_sentence(caught.value, "in task toy", said, f" in {tmp_path / 'toy.yaml'}")


def test_a_set_that_cannot_be_reached_is_no_mistake_of_the_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    write_task(tmp_path, dataset_path="org/nowhere", dataset_kwargs="{}")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(DataError) as caught, lm_eval_errors():
        manager.load(["toy"])
    assert_sentence(caught.value, "in task toy: ", "org/nowhere", "go online, or set GKS_DATA_ROOT")


def test_what_comes_from_no_task_names_none() -> None:
    with pytest.raises(UsageError) as caught, lm_eval_errors():
        raise ValueError("Tasks not found: x")
    assert_sentence(caught.value, "lm-eval stopped: Tasks not found: x")


def test_a_yaml_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path)
    (tmp_path / "bad.yaml").write_text("task: [{{\n")
    warn_of_unreadable([str(tmp_path)])
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{tmp_path / 'bad.yaml'} is left out, as it cannot be read: while")


def test_leaves_of_groups_and_tags(tmp_path: Path) -> None:
    write_task(tmp_path, tag="some")
    (tmp_path / "in.yaml").write_text("group: inner\ntask: [toy, other]\n")
    (tmp_path / "out.yaml").write_text("group: outer\ntask: [{group: inner}, {task: last}]\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert list(leaves(manager, "outer")) == ["toy", "other", "last"]
    assert list(leaves(manager, "some")) == ["toy"]
    assert list(leaves(manager, "unknown")) == ["unknown"]
