from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence
from hypothesis import given
from hypothesis import strategies as st

from gks_eval.errors import DataError, UsageError
from gks_eval.tasklib.data import draw_rows, interleave, load_data, load_subsets, resolve_files
from gks_eval.tasklib.local_data import local_data


def test_interleave_takes_turns() -> None:
    assert interleave([2, 3, 1]) == [0, 2, 5, 1, 3, 4]
    assert interleave([]) == []


@given(st.lists(st.integers(0, 7), max_size=6))
def test_interleave_is_a_permutation_and_any_start_is_even(lengths: list[int]) -> None:
    order = interleave(lengths)
    assert sorted(order) == list(range(sum(lengths)))
    part_of = [part for part, length in enumerate(lengths) for _ in range(length)]
    taken = [0] * len(lengths)
    for index in order:
        part = part_of[index]
        taken[part] += 1
        behind = [taken[p] for p in range(len(lengths)) if taken[p] < lengths[p]]
        assert all(taken[part] - count <= 1 for count in behind)


def test_a_draw_is_the_start_of_numpy_s_permutation() -> None:
    """The test part of `train_test_split`: the first rows of one permutation by the seed."""
    import datasets
    import numpy as np

    rows = datasets.Dataset.from_dict({"id": list(range(1000))})
    for seed in (1234, 7):
        expected = np.random.default_rng(seed).permutation(1000)[:400].tolist()
        found = draw_rows({"val": rows, "train": rows}, "val", {"rows": 400, "seed": seed}, "x")
        assert found["val"]["id"] == expected
        assert found["train"] is rows


@pytest.mark.parametrize(
    ("draw", "split", "parts"),
    [
        ({"rows": 1000, "seed": 1234}, "train", ["split train", "1000 rows", "`draw`"]),
        ({"rows": 4, "seed": 0}, "test", ["no split 'test'", "train, val"]),
        ({"rows": 4}, "train", ["write {rows: 400, seed: 1234}"]),
        ({"rows": 4, "seed": 0, "shuffle": True}, "train", ["'shuffle'", "seed: 1234"]),
        ({"rows": 0.5, "seed": 0}, "train", ["0.5", "seed: 1234"]),
        ({"rows": 0, "seed": 0}, "train", ["at least one row"]),
        ({"rows": True, "seed": 0}, "train", ["True", "seed: 1234"]),
        ({"rows": 4, "seed": -1}, "train", ["-1", "seed: 1234"]),
        (400, "train", ["400", "seed: 1234"]),
    ],
)
def test_a_draw_that_cannot_be(draw: object, split: str, parts: list[str]) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"id": list(range(1000))})
    with pytest.raises(DataError) as caught:
        draw_rows({"train": rows, "val": rows}, split, draw, "a/b")
    assert_sentence(caught.value, "a/b", *parts)


def test_files_are_beside_the_yaml(tmp_path: Path) -> None:
    files = resolve_files({"test": "data/x.jsonl"}, tmp_path / "task.yaml")
    assert files == {"test": str(tmp_path.resolve() / "data" / "x.jsonl")}


CARD = """---
configs:
- config_name: one
  data_files: [{split: test, path: one/test.jsonl}]
- config_name: two
  data_files: [{split: test, path: two/test.jsonl}]
---
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give `datasets` an empty cache."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GKS_DATA_ROOT", raising=False)
    return tmp_path / "cache"


def write_set(folder: Path, **answers: str) -> Path:
    """Write the data set org/set with a row in each subset, and return `folder`."""
    for subset, answer in answers.items():
        file = folder / "org/set" / subset / "test.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"q": "2 + 2 =", "a": answer}) + "\n", "utf-8")
    (folder / "org/set/README.md").write_text(CARD, "utf-8")
    return folder


def answer(data: Any) -> str:
    return str(data["test"][0]["a"])


def test_one_name_in_two_folders_is_two_sets(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        monkeypatch.chdir(write_set(tmp_path / name, one=name, two="-"))
        assert answer(load_data("org/set", "one")) == name
    assert answer(load_data(str(tmp_path / "here/org/set"), "one")) == "here"


def test_an_edited_file_is_read_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_set(tmp_path, one="4", two="-"))
    file = tmp_path / "org/set/one/test.jsonl"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    files = {"test": str(file)}
    assert answer(load_data("org/set", "one")) == "4"
    assert answer(load_data("json", data_files=files)) == "4"
    file.write_text(file.read_text("utf-8").replace('"4"', '"5"'), "utf-8")
    os.utime(file, ns=times)  # as `cp -p` and `tar` leave it: neither size nor time tells
    assert answer(load_data("org/set", "one")) == "5"
    assert answer(load_data("json", data_files=files)) == "5"


def test_what_was_mapped_from_an_edited_subset_is_mapped_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped() -> list[str]:
        rows = load_subsets("org/set", ["one", "two"])["test"].map(shout)
        return [row["loud"] for row in rows]

    def shout(row: dict[str, str]) -> dict[str, str]:
        return {"loud": row["a"] + "!"}

    monkeypatch.chdir(write_set(tmp_path, one="a", two="b"))
    assert mapped() == ["a!", "b!"]
    write_set(tmp_path, one="a", two="c")
    assert mapped() == ["a!", "c!"]


def test_lm_evals_own_tasks_read_them_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "plain.yaml").write_text(
        "task: plain\ndataset_path: org/set\ndataset_name: one\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
    )
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = []
    for name in ("here", "there"):
        monkeypatch.chdir(write_set(tmp_path / name, one=name, two="-"))
        with local_data():
            found.append(answer(manager.load(["plain"])["tasks"]["plain"].dataset))
    assert found == ["here", "there"]


def test_a_folder_of_data_sets_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_set(tmp_path / "here", one="here", two="-"))
    monkeypatch.setenv("GKS_DATA_ROOT", str(write_set(tmp_path / "root", one="root", two="-")))
    assert answer(load_data("org/set", "one")) == "root"
    monkeypatch.setenv("GKS_DATA_ROOT", str(tmp_path / "no"))
    with pytest.raises(UsageError) as caught:
        load_data("org/set", "one")
    assert_sentence(caught.value, "GKS_DATA_ROOT", str(tmp_path / "no"))


def test_a_file_that_is_no_json_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_set(tmp_path, one="4", two="-"))
    (tmp_path / "org/set/one/test.jsonl").write_text('{"q": [', "utf-8")
    with pytest.raises(DataError) as caught:
        load_data("org/set", "one")
    assert_sentence(caught.value, "'org/set', subset 'one'", "correct the file")
