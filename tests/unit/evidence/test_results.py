"""Reading: lm-eval's own files, and files that are broken, half written or not lm-eval's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gks_eval.errors import ResultsError
from gks_eval.evidence.results import read_results
from gks_eval.evidence.runs import find_runs, one_run
from gks_eval.evidence.samples import read_samples
from gks_eval.util.grid_order import read_order, write_order

HALF = [1.0, 0.0] * 5


def test_a_file_of_lm_eval_is_read_as_written(golden):
    path = min((golden / "llama-0" / "model").glob("results_*.json"))
    raw = json.loads(path.read_text())
    results = read_results(path)
    assert set(results.tasks) == {"ev_maths", "ev_birds"}
    maths = results.tasks["ev_maths"]
    assert maths.n == 10
    assert maths.shots == 0
    assert maths.version == "1.0"
    assert maths.metrics["acc,none"].value == raw["results"]["ev_maths"]["acc,none"]
    assert maths.metrics["acc,none"].stderr == raw["results"]["ev_maths"]["acc_stderr,none"]
    assert maths.metrics["acc,none"].higher_is_better is True
    assert results.model == "hf"
    assert "tiny-llama-0" in results.model_args


def test_groups_are_flattened_and_their_weighting_told_from_the_numbers(golden):
    results = read_results(min((golden / "llama-0" / "model").glob("results_*.json")))
    weighted, plain = results.groups["ev_weighted"], results.groups["ev_unweighted"]
    assert weighted.leaves == plain.leaves == ("ev_maths", "ev_birds")
    assert weighted.weighted == {"acc,none": True}
    assert plain.weighted == {"acc,none": False}
    assert plain.metrics["acc,none"].higher_is_better is True


def test_a_group_whose_tasks_weigh_the_same_either_way_is_left_open(factory, tmp_path):
    path = factory.write_run(tmp_path, {"a": HALF, "b": HALF}, groups={"g": (("a", "b"), True)})
    assert read_results(path).groups["g"].weighted == {"acc,none": None}


def test_samples_keep_duplicates_apart(golden):
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    samples = read_samples(task)
    assert samples is not None
    items = samples.by_filter["none"]
    assert [item.doc_id for item in items] == list(range(10))
    assert items[0].key == (items[9].key[0], 0)
    assert items[9].key[1] == 1
    assert sum(item.values["acc"] for item in items) / 10 == task.metrics["acc,none"].value


def test_every_filter_of_a_generated_task_is_read(golden):
    samples = read_samples(one_run(str(golden / "llama-1")).tasks["ev_copy"])
    assert samples is not None
    assert set(samples.by_filter) == {"strict", "letters"}


def test_two_files_of_one_model_in_one_folder_are_one_run(golden):
    run = one_run(str(golden / "llama-0"))
    assert set(run.tasks) == {"ev_maths", "ev_birds", "ev_copy"}
    assert len(run.files) == 2
    assert run.label == "llama-0"


def test_the_newest_of_several_results_wins_and_an_older_can_be_named(factory, tmp_path):
    old = factory.write_run(tmp_path, {"a": [0.0] * 10}, stamp="2026-01-01T00-00-00.0")
    factory.write_run(tmp_path, {"a": [1.0] * 10}, stamp="2026-01-02T00-00-00.0")
    assert one_run(str(tmp_path)).tasks["a"].metrics["acc,none"].value == 1.0
    assert one_run(str(old)).tasks["a"].metrics["acc,none"].value == 0.0


def test_folders_globs_and_labels(factory, tmp_path):
    for name in ("gks-avg", "arrow", "base"):
        factory.write_run(tmp_path / "grid" / name / "tiny", {"a": HALF})
    assert [run.label for run in find_runs([str(tmp_path / "grid")])] == [
        "base",
        "arrow",
        "gks-avg",
    ]
    globbed = find_runs([str(tmp_path / "grid" / "*")])
    assert {run.label for run in globbed} == {"base", "arrow", "gks-avg"}
    named = find_runs([f"mine={tmp_path}/grid/base", f"{tmp_path}/grid/arrow"])
    assert [run.label for run in named] == ["mine", "arrow"]


def test_equal_labels_are_told_apart(factory, tmp_path):
    for side in ("x", "y"):
        factory.write_run(tmp_path / side / "out" / "tiny", {"a": HALF})
    labels = [run.label for run in find_runs([f"{tmp_path}/x/out", f"{tmp_path}/y/out"])]
    assert len(set(labels)) == 2
    assert len(find_runs([f"{tmp_path}/x/out", f"{tmp_path}/x/out"])) == 1


def labels(runs):
    return [run.label for run in runs]


def test_a_folder_and_its_parent_count_a_run_once(factory, tmp_path, monkeypatch):
    for name in ("base", "arrow", "gks-en"):
        factory.write_run(tmp_path / "grid" / name, {"a": [1.0, 0.0]})
    parent, child = str(tmp_path / "grid"), str(tmp_path / "grid" / "gks-en")
    assert labels(find_runs([child, parent])) == ["gks-en", "base", "arrow"]
    assert labels(find_runs([parent, child])) == ["base", "arrow", "gks-en"]
    assert labels(find_runs([parent, f"{parent}/*"])) == ["base", "arrow", "gks-en"]
    # A label that somebody gave is kept, and the same files under two given labels are two runs.
    assert labels(find_runs([parent, f"short={child}"])) == ["base", "arrow", "short"]
    assert labels(find_runs([f"short={child}", parent])) == ["short", "base", "arrow"]
    assert labels(find_runs([f"x={child}", f"y={child}"])) == ["x", "y"]
    monkeypatch.chdir(tmp_path)
    assert labels(find_runs(["grid/gks-en", child])) == ["gks-en"]


ARGUMENTS = {
    "peft": (["pretrained=m,peft=a", "pretrained=m"], None),
    "dtype": (["pretrained=m,dtype=float16", "pretrained=m,dtype=float32"],
              ["m@dtype=float16", "m@dtype=float32"]),
    "json": ([{"pretrained": "m", "n": 2}, {"pretrained": "m", "n": 10}], ["m@n=2", "m@n=10"]),
    "long": ([f"pretrained={c * 60}" for c in "ab"], None),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_runs_of_one_folder_are_named_by_what_differs(factory, tmp_path, arguments, expected):
    stamps = [f"2026-01-0{i}T00-00-00.000001" for i in (1, 2)]
    for stamp, given in zip(stamps, arguments, strict=True):
        factory.write_run(tmp_path / "m", {"a": [1.0]}, stamp=stamp, model_args=given)
    named = labels(find_runs([str(tmp_path / "m")]))
    assert named == (expected or [f"m@{stamp}" for stamp in stamps])


def test_an_older_file_of_a_folder_is_another_run(factory, tmp_path):
    old = factory.write_run(tmp_path / "m", {"a": [1.0]}, stamp="2026-01-01T00-00-00.000001")
    factory.write_run(tmp_path / "m", {"a": [0.0]}, stamp="2026-01-02T00-00-00.000001")
    assert len(find_runs([str(old), str(tmp_path / "m")])) == 2


def test_a_grid_s_order_is_kept(factory, tmp_path):
    order = ["uniform", "gks-en", "base", "arrow"]
    for name in (*order, "alone"):
        factory.write_run(tmp_path / "g" / name, {"a": [1.0, 0.0]})
    factory.write_run(tmp_path / "other" / "arrow", {"a": [1.0, 0.0]})
    write_order(tmp_path / "g", order)
    assert labels(find_runs([str(tmp_path / "g")])) == [*order, "alone"]
    assert labels(find_runs([str(tmp_path)]))[-4:] == [f"g/{name}" for name in order]
    # A later command adds its settings, and orders all of them where it names all.
    write_order(tmp_path / "g", ["alone", "arrow"])
    assert read_order(tmp_path / "g") == [*order, "alone"]
    write_order(tmp_path / "g", sorted([*order, "alone"]))
    assert read_order(tmp_path / "g") == sorted([*order, "alone"])
    (tmp_path / "g" / "grid.json").write_text('{"settings": ')
    assert labels(find_runs([str(tmp_path / "g")])) == [
        "base",
        "arrow",
        "alone",
        "gks-en",
        "uniform",
    ]


def test_two_models_in_one_folder_are_two_runs(factory, tmp_path):
    factory.write_run(tmp_path, {"a": HALF}, model_args={"peft": "one"})
    factory.write_run(
        tmp_path, {"a": HALF}, model_args={"peft": "two"}, stamp="2026-02-02T00-00-00.0"
    )
    assert len(find_runs([str(tmp_path)])) == 2
    with pytest.raises(ResultsError, match="holds 2 runs"):
        one_run(str(tmp_path))


def test_an_output_path_that_names_a_json_file_is_read(factory, tmp_path):
    path = factory.write_run(tmp_path, {"a": HALF})
    path.rename(tmp_path / path.name.replace("results_", "mine_"))
    run = one_run(str(tmp_path))
    assert run.tasks["a"].samples is not None


def test_several_ranks_are_put_back_in_order(factory, tmp_path):
    path = factory.write_run(tmp_path, {"a": HALF})
    samples = next(tmp_path.glob("samples_*"))
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[1::2] + lines[0::2]) + "\n")
    read = read_samples(read_results(path).tasks["a"])
    assert read is not None
    assert [item.values["acc"] for item in read.by_filter["none"]] == HALF


def _damage_results(text: str) -> dict[str, str]:
    data = json.loads(text)

    def changed(**keys: object) -> str:
        return json.dumps({**data, **keys})

    return {
        "half": text[: len(text) // 2],
        "empty": "",
        "deep": "[" * 100_000,
        "list": "[]",
        "no results": "{}",
        "no tasks": changed(results={}),
        "results are text": changed(results={"a": "x"}),
        "an n beyond reason": changed(results={"a": {"sample_len": 10**400, "acc,none": 0.5}}),
        "no n": changed(results={"a": {"acc,none": 0.5}}, **{"n-samples": {}}),
        "bad n": changed(results={"a": {"sample_len": "many", "acc,none": 0.5}}),
    }


@pytest.mark.parametrize("damage", list(_damage_results("{}")))
def test_a_broken_results_file_is_named(factory, tmp_path, damage):
    path = factory.write_run(tmp_path, {"a": HALF})
    path.write_text(_damage_results(path.read_text())[damage])
    with pytest.raises(ResultsError, match=path.name) as caught:
        one_run(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_results_file_that_is_not_text_is_named(factory, tmp_path):
    path = factory.write_run(tmp_path, {"a": HALF})
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ResultsError, match=path.name):
        one_run(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:40]], "line 10"),
        (lambda lines: lines[:-1], "9 items"),
        (lambda lines: [*lines, lines[0]], "11 items"),
        (lambda lines: [], "empty"),
        (lambda lines: [*lines[:-1], "[]"], "line 10"),
        (lambda lines: [*lines[:-1], '{"filter": "none"}'], "doc_id"),
        (lambda lines: [*lines[:-1], '{"filter": "none", "doc_id": 9}'], "doc_hash"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"doc_id": 9', '"doc_id": true')], "doc_id"),
    ],
)
def test_a_broken_samples_file_is_named(factory, tmp_path, damage, said):
    path = factory.write_run(tmp_path, {"a": HALF})
    samples = next(tmp_path.glob("samples_*"))
    samples.write_text("".join(line + "\n" for line in damage(samples.read_text().splitlines())))
    with pytest.raises(ResultsError, match=said) as caught:
        read_samples(read_results(path).tasks["a"])
    assert samples.name in str(caught.value)


def test_half_a_character_cannot_break_what_is_written_later(factory, tmp_path):
    args = {"a": "\ud800", "b": "\U0001f600"}
    run = one_run(str(factory.write_run(tmp_path, {"a": HALF}, model_args=args)))
    assert run.model_args == '{"a": "?", "b": "\U0001f600"}'
    samples = next(tmp_path.glob("samples_*"))
    samples.write_text(samples.read_text().replace("Question 3?", "\\ud800"))
    found = read_samples(run.tasks["a"])
    assert found
    assert len(found.by_filter["none"]) == len(HALF)


@pytest.mark.parametrize("stderr", [10**400, float("nan"), -0.1, "N/A"])
def test_a_standard_error_that_is_none_is_left_out(factory, tmp_path, stderr):
    results = {"a": {"sample_len": 2, "acc,none": 0.5, "acc_stderr,none": stderr}}
    path = factory.write_run(tmp_path, {"a": HALF}, change={"results": results})
    assert read_results(path).tasks["a"].metrics["acc,none"].stderr is None


def test_a_run_without_samples_is_no_error(factory, tmp_path):
    path = factory.write_run(tmp_path, {"a": HALF}, samples=False)
    assert read_samples(read_results(path).tasks["a"]) is None


def test_a_task_name_cannot_lead_out_of_the_folder(factory, tmp_path):
    path = factory.write_run(tmp_path / "in", {"a": HALF})
    (tmp_path / "samples_x.jsonl").write_text("secret")
    text = path.read_text().replace('"a"', '"../samples_x"')
    moved = path.with_name("results.json")
    moved.write_text(text)
    assert all(task.samples is None for task in read_results(moved).tasks.values())


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.json", "label=nowhere"])
def test_a_path_that_leads_nowhere_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultsError, match="nowhere"):
        find_runs([source])


@pytest.mark.parametrize("source", ["", " ", "label= "])
def test_an_empty_path_is_not_the_working_folder(factory, tmp_path, monkeypatch, source):
    factory.write_run(tmp_path, {"a": HALF})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultsError, match="empty path"):
        find_runs([source])


def test_runs_that_share_a_folder_are_told_apart_by_their_files(factory, tmp_path):
    files = [
        factory.write_run(tmp_path, {"a": HALF}, model_args=args, stamp=f"2026-0{n}-01T00-00-00")
        for n, args in enumerate(("pretrained=x", "pretrained=y"), start=1)
    ]
    with pytest.raises(ResultsError, match="holds 2 runs") as caught:
        one_run(str(tmp_path))
    assert all(file.name in str(caught.value) for file in files)
    assert one_run(str(files[1])).model_args == "pretrained=y"


def test_an_empty_folder_and_a_samples_file_are_named(golden, tmp_path):
    with pytest.raises(ResultsError, match=r"no results_\*.json"):
        find_runs([str(tmp_path)])
    samples = next((golden / "dummy" / "model").glob("samples_*"))
    with pytest.raises(ResultsError, match="results_"):
        find_runs([str(samples)])


def test_a_label_cannot_stand_for_several_runs(factory, tmp_path):
    for name in ("x", "y"):
        factory.write_run(tmp_path / name, {"a": HALF})
    with pytest.raises(ResultsError, match="a label names one"):
        find_runs([f"both={tmp_path}"])


def test_a_path_with_an_equals_sign_is_a_path(factory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    factory.write_run(Path("k=3"), {"a": HALF})
    assert find_runs(["k=3"])[0].label == "k=3"
