"""Files as releases of lm-eval write them: every entry is read, or named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gks_eval.errors import ResultsError
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.gate import gate
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.results import read_results
from gks_eval.evidence.runs import find_runs, one_run
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import load_scores

VERSIONS = Path(__file__).parents[2] / "golden" / "lm_eval_versions"
READ = ["0.4.3", "0.4.5", "0.4.8", "0.4.11", "0.4.12"]
PATHS = [path for v in READ for path in sorted((VERSIONS / v).glob("*/results*.json"))]


def _id(path: Path) -> str:
    return f"{path.parents[1].name}-{path.parent.name}"


def test_all_formats_are_here():
    assert sorted(p.name for p in VERSIONS.iterdir()) == sorted(["0.4.2", *READ])
    assert len(PATHS) == 13


@pytest.mark.parametrize("path", PATHS, ids=_id)
@pytest.mark.parametrize("samples", [True, False], ids=["samples", "no samples"])
def test_every_entry_of_a_file_has_a_row(path, samples, tmp_path):
    folder = Path(shutil.copytree(path.parent, tmp_path / "run"))
    if not samples:
        for file in folder.glob("samples_*"):
            file.unlink()
    recorded = json.loads(path.read_text())["results"]
    comparison = compare(find_runs([str(folder)]), alone=True)
    assert {row.name for row in comparison.rows} == set(recorded)
    assert comparison.notes == []
    for row in comparison.rows:
        (score,) = row.scores.values()
        assert score.value == pytest.approx(recorded[row.name][row.metric], abs=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=_id)
def test_items_give_the_recorded_values(path):
    found = 0
    for task in read_results(path).tasks.values():
        for key, metric in task.metrics.items():
            scores = load_scores(task, key, read_samples(task))
            assert metric.higher_is_better is not None
            if metric.name in ("bleu", "mcc", "f1"):
                assert scores.missing == f"{metric.name} is scored over all items at once"
                continue
            assert scores.values.mean() == pytest.approx(metric.value, rel=1e-12)
            assert scores.n == task.n == len(scores.values)
            found += 1
    assert found == {"mixed": 8, "kinds": 7, "passes": 1}[path.parent.name]


@pytest.mark.parametrize("version", READ)
def test_a_group_averages_its_tasks_and_the_lone_task_stands_next_to_it(version):
    run = one_run(str(VERSIONS / version / "mixed"))
    assert set(run.tasks) == {"ev_maths", "ev_birds", "ev_trees", "ev_lone"}
    # 0.4.3 itself takes a task out of its groups that is asked for alone as well.
    shared = set() if version == "0.4.3" else {"ev_maths"}
    assert {name: set(group.leaves) for name, group in run.groups.items()} == {
        "ev_inner": {"ev_birds", *shared},
        "ev_outer": {"ev_birds", "ev_trees", *shared},
    }
    rows = {row.name: row for row in compare([run], alone=True).rows}
    assert [score.n for score in rows["ev_outer"].scores.values()] == [7 * len(shared) + 4 + 3]
    assert [score.n for score in rows["ev_inner"].scores.values()] == [7 * len(shared) + 4]
    policy = GatePolicy(min_pairs=1)
    copy = f"{VERSIONS / version}/mixed"
    checks = gate(run, one_run(copy), policy)
    assert {o.check.name for o in checks.outcomes} == {*run.tasks}  # the same files


@pytest.mark.parametrize("run", ["kinds", "mixed"])
def test_files_before_0_4_3_are_refused_with_the_release_to_use(run):
    with pytest.raises(ResultsError, match=r"with lm-eval 0\.4\.3 or later"):
        one_run(str(VERSIONS / "0.4.2" / run))


def _as_before_0_4_12(path: Path) -> None:
    """List tasks that were asked for as groups without members."""
    data = json.loads(path.read_text())
    data["group_subtasks"] |= {name: [] for name in data["configs"]}
    path.write_text(json.dumps(data))


def test_a_task_asked_for_alone_stays_in_its_group(factory, tmp_path):
    better = [1.0] * 18 + [0.0] * 32, [0.0] * 120
    for name, small, large in (
        ("base", [1.0] * 14 + [0.0] * 36, [1.0] * 35 + [0.0] * 85),
        ("tuned", better[0], [1.0] * 31 + [0.0] * 89),
    ):
        tasks = {"small": small, "large": large, "lone": [1.0, 0.0] * 60}
        path = factory.write_run(tmp_path / name, tasks, groups={"g": (("small", "large"), True)})
        _as_before_0_4_12(path)
    runs = find_runs([str(tmp_path / "base"), str(tmp_path / "tuned")])
    rows = {row.name: row for row in compare(runs).rows}
    assert set(rows) == {"small", "large", "lone", "g"}
    assert [s.value for s in rows["g"].scores.values()] == [pytest.approx(49 / 170)] * 2
    assert rows["g"].differences[0].n == 170
    check = next(
        o.check for o in gate(*runs, GatePolicy(min_pairs=50)).outcomes if o.check.kind == "group"
    )
    assert check.n == 170
    assert [check.baseline, check.candidate] == [pytest.approx(49 / 170)] * 2


def test_what_no_row_accounts_for_is_named(factory, tmp_path):
    for name in ("x", "y"):
        path = factory.write_run(
            tmp_path / name,
            {"a": [1.0, 0.0], "b": [1.0, 0.0, 0.0]},
            groups={"g": (("a", "b"), True)},
        )
        data = json.loads(path.read_text())
        data["group_subtasks"] |= {"g": ["a", "b", "gone"], "header": ["a"]}
        data["results"] |= {"header": {" ": " ", "alias": "header"}, "bare": {"alias": "bare"}}
        data["results"]["g"]["acc,none"] = 0.9
        data["n-samples"]["bare"] = {"original": 2, "effective": 2}
        path.write_text(json.dumps(data))
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    expected = [
        "bare has no metric in x, y",
        "gone, a task of g, has no results in x, y",
        "g records an average of acc,none that its tasks do not give in x, y",
        "header is a group without an average in x, y",
    ]
    notes = compare(runs).notes
    assert notes[:4] == expected
    assert gate(*runs, GatePolicy()).notes[-4:] == expected


def test_tasks_without_the_metric_asked_for_are_named(factory, tmp_path):
    factory.write_run(tmp_path, {"a": [1.0, 0.0]})
    factory.write_run(tmp_path, {"b": [0.5, 0.2]}, metric="f1", stamp="2026-02-02T00-00-00.0")
    comparison = compare(find_runs([str(tmp_path)]), CompareOptions(metric="acc"), alone=True)
    assert comparison.notes == ["b has no acc and is left out"]
