"""What the gate measures and says of each task and group, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gks_eval.evidence.gate import gate, measure_checks
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.runs import Run, one_run
from gks_eval.evidence.stats.paired_counts import paired_interval
from gks_eval.evidence.verdict import Check

# Standard normal quantiles of 95%, 99% and 80%.
Z_95, Z_99, Z_80 = 1.644854, 2.326348, 0.841621


@pytest.fixture
def runs(factory, tmp_path) -> Callable[..., tuple[Run, Run]]:
    """Return ``runs(old tasks, new tasks, **options of write_run)``."""

    def make(old: dict, new: dict, **options: Any) -> tuple[Run, Run]:
        factory.write_run(tmp_path / "old", old, **options)
        factory.write_run(tmp_path / "new", new, **options)
        return read(tmp_path)

    return make


def read(folder: Path) -> tuple[Run, Run]:
    return one_run(str(folder / "old")), one_run(str(folder / "new"))


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    """Change a run's results file."""
    path = next(folder.glob("results_*"))
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def only(checks: list[Check], name: str) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


@pytest.mark.parametrize(("alpha", "z"), [(0.05, Z_95), (0.01, Z_99)])
def test_a_task_by_hand(runs, factory, alpha, z):
    old, new = factory.planted(1000, 50, 100, 500)
    (check,) = measure_checks(*runs({"a": old}, {"a": new}), GatePolicy(alpha=alpha))
    assert (check.kind, check.name, check.metric, check.problem) == ("task", "a", "acc,none", "")
    assert (check.baseline, check.candidate) == (0.6, 0.55)
    assert (check.n, check.gains, check.losses) == (1000, 50, 100)
    assert (check.binary, check.higher_is_better) == (True, True)
    assert check.change == pytest.approx(-0.05)
    assert check.p == pytest.approx(stats.binomtest(50, 150, alternative="less").pvalue)
    assert check.limits == Limits(max_drop=0.0, alpha=alpha, min_pairs=100)
    d = check.detectable
    assert math.sqrt(1000) * d == pytest.approx(
        z * math.sqrt(0.15) + Z_80 * math.sqrt(0.15 - d * d), abs=1e-5
    )


def test_a_tolerated_drop_is_tested_by_the_interval_s_own_test(runs, factory):
    old, new = factory.planted(1000, 50, 100, 500)
    made = runs({"a": old}, {"a": new})
    (check,) = measure_checks(*made, GatePolicy(max_drop=0.04))
    # By the score: variance 1000 (2 q - 0.04 * 1.04) with q = 0.0951, half a pair turned to gain.
    assert check.p == pytest.approx(stats.norm.cdf((-50 + 40 + 1) / math.sqrt(148.7)), abs=0.02)
    # The upper end of the 90% interval is the largest tolerance that fails at 5%.
    _, high = paired_interval(50, 100, 1000, 0.9)
    for tolerance, side in ((-high - 1e-6, "less"), (-high + 1e-6, "more")):
        (check,) = measure_checks(*made, GatePolicy(max_drop=tolerance))
        assert (check.p < 0.05) == (side == "less")


def test_where_lower_is_better_everything_is_turned_but_the_values(runs, factory):
    old, new = factory.planted(1000, 50, 100, 500)
    (check,) = measure_checks(*runs({"a": old}, {"a": new}, higher_is_better=False), GatePolicy())
    assert (check.baseline, check.candidate, check.higher_is_better) == (0.6, 0.55, False)
    assert (check.n, check.gains, check.losses) == (1000, 100, 50)
    assert check.change == pytest.approx(0.05)
    assert check.p == pytest.approx(stats.binomtest(100, 150, alternative="less").pvalue)


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_a_continuous_task_by_hand(runs, tolerance):
    rng = np.random.default_rng(2)
    old = rng.normal(0.5, 0.2, 300)
    change = rng.normal(-0.01, 0.1, 300)
    made = runs({"a": list(old)}, {"a": list(old + change)}, metric="f1")
    (check,) = measure_checks(*made, GatePolicy(max_drop=tolerance))
    assert (check.metric, check.binary, check.n) == ("f1,none", False, 300)
    assert (check.gains, check.losses) == ((change > 0).sum(), (change < 0).sum())
    assert check.change == pytest.approx(change.mean())
    expected = stats.ttest_1samp(change, -tolerance, alternative="less").pvalue
    assert check.p == pytest.approx(expected, abs=0.01)
    assert check.detectable == pytest.approx((Z_95 + Z_80) * change.std() / math.sqrt(300))
    assert measure_checks(*made, GatePolicy(max_drop=tolerance)) == [check]


def test_unchanged_items_have_nothing_to_detect(runs):
    for metric, scores in (("acc", [1.0, 0.0] * 50), ("f1", [0.25, 0.5] * 50)):
        same = {"a": scores}
        groups = {"g": (("a",), True)}
        checks = measure_checks(*runs(same, same, metric=metric, groups=groups), GatePolicy())
        assert [check.detectable for check in checks] == [None, None]
        assert [check.p for check in checks] == [1.0, 1.0]


@pytest.mark.parametrize(("alpha", "z"), [(0.05, Z_95), (0.01, Z_99)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("tolerance", [0.0, 0.03])
def test_a_group_by_hand(runs, factory, alpha, z, weighted, higher, tolerance):
    (old_a, new_a), (old_b, new_b) = (
        factory.planted(400, 20, 60, 100),
        factory.planted(101, 9, 10, 40),
    )
    made = runs(
        {"a": old_a, "b": old_b},
        {"a": new_a, "b": new_b},
        groups={"g": (("a", "b"), weighted)},
        higher_is_better=higher,
    )
    check = only(measure_checks(*made, GatePolicy(alpha=alpha, max_drop=tolerance)), "g")
    sign = 1 if higher else -1
    w = (400 / 501, 101 / 501) if weighted else (0.5, 0.5)
    change = sign * (w[0] * -40 / 400 + w[1] * -1 / 101)
    shares = ((w[0], 400, 80, sign * -40), (w[1], 101, 19, sign * -1))

    def squares(shift: float) -> float:
        """Sum of the squared parts of the average, each change shifted."""
        return sum(
            share**2 / n**2 * (changed + 2 * shift * total + n * shift**2)
            for share, n, changed, total in shares
        )

    assert (check.kind, check.metric, check.problem) == ("group", "acc,none", "")
    assert (check.binary, check.higher_is_better) == (True, higher)
    assert check.baseline == pytest.approx(w[0] * 160 / 400 + w[1] * 50 / 101)
    assert check.candidate == pytest.approx(w[0] * 120 / 400 + w[1] * 49 / 101)
    assert check.change == pytest.approx(change)
    assert check.n == 501
    assert (check.gains, check.losses) == ((29, 70) if higher else (70, 29))
    expected = stats.norm.cdf((change + tolerance) / math.sqrt(squares(tolerance)))
    assert check.p == pytest.approx(expected)
    assert check.detectable == pytest.approx((z + Z_80) * math.sqrt(squares(-change)), rel=1e-5)


def test_a_group_with_a_task_that_is_no_accuracy_is_none(runs):
    a, b = [1.0, 0.0] * 20, [0.25, 0.5] * 20
    groups = {"g": (("a", "b"), True)}
    assert not only(
        measure_checks(*runs({"a": a, "b": b}, {"a": a, "b": b}, groups=groups), GatePolicy()), "g"
    ).binary


# --- what cannot be judged ----------------------------------------------------------------------

SCORES = {"a": [1.0, 0.0] * 60, "b": [1.0, 0.0] * 60}
GROUP = {"g": (("a", "b"), True)}


@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_what_one_run_lacks_is_said_of_that_run(runs, tmp_path, role):
    runs(SCORES, SCORES, groups=GROUP)
    folder = tmp_path / ("old" if role == "baseline" else "new")

    def damage(data: dict) -> None:
        for part in ("results", "groups", "group_subtasks"):
            data[part].pop("g")
        data["results"].pop("b")
        data["results"]["a"] = {
            key.replace("acc", "f1"): value for key, value in data["results"]["a"].items()
        }

    edit(folder, damage)
    policy = GatePolicy(tasks={"a": Limits(metric="acc")}, required=["b", "g"])
    checks = measure_checks(*read(tmp_path), policy)
    assert only(checks, "a").problem == f"no metric acc,none in the {role}"
    assert only(checks, "b").problem == f"missing in the {role}"
    assert only(checks, "g").problem == f"missing in the {role}"


def test_what_both_lack_is_said_of_the_baseline(runs):
    made = runs(SCORES, SCORES, groups=GROUP)
    policy = GatePolicy(
        only_listed=True, required=["x"], groups={"y": Limits(), "g": Limits(metric="f1")}
    )
    checks = measure_checks(*made, policy)
    assert (only(checks, "x").metric, only(checks, "x").binary) == ("", False)
    problems = {check.name: check.problem for check in checks}
    assert problems == {
        "x": "missing in the baseline",
        "y": "missing in the baseline",
        "g": "no metric f1 in both runs",
    }


def test_a_group_without_its_metric_in_the_candidate(runs, tmp_path):
    runs(SCORES, SCORES, groups=GROUP)

    def damage(data: dict) -> None:
        data["results"]["g"]["f1,none"] = data["results"]["g"].pop("acc,none")

    edit(tmp_path / "new", damage)
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert check.problem == "no metric acc,none in both runs"


def test_a_group_of_other_tasks(factory, tmp_path):
    factory.write_run(tmp_path / "old", SCORES, groups=GROUP)
    factory.write_run(tmp_path / "new", SCORES, groups={"g": (("a",), True)})
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert check.problem == "its tasks differ between the two runs"


def test_a_group_is_as_comparable_as_its_tasks(factory, tmp_path):
    for name, version in (("old", 1.0), ("new", 2.0)):
        factory.write_run(tmp_path / name, SCORES, groups=GROUP, version=version)
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert (check.problem, check.p) == ("a: version 1.0 against 2.0", None)


def test_a_group_with_a_task_that_no_run_has(runs, tmp_path):
    runs(SCORES, SCORES, groups=GROUP)
    for name in ("old", "new"):
        edit(tmp_path / name, lambda data: data["results"].pop("b"))
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert check.problem == "b: missing in the baseline"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_group_is_judged_on_the_tasks_that_have_its_metric(runs, tmp_path, order):
    runs(SCORES, SCORES, groups={"g": (tuple(order), True)})

    def other_metric(*tasks: str) -> Callable[[dict], None]:
        def damage(data: dict) -> None:
            for name in tasks:
                data["results"][name]["f1,none"] = data["results"][name].pop("acc,none")

        return damage

    for name in ("old", "new"):
        edit(tmp_path / name, other_metric("b"))
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert (check.problem, check.n) == ("", 120)
    # In one run only, it is a task without its metric.
    edit(tmp_path / "new", other_metric("a"))
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert check.problem == "a: no metric acc,none in the candidate"
    edit(tmp_path / "old", other_metric("a"))
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "g")
    assert check.problem == "none of its tasks has acc,none"


def test_why_items_cannot_be_paired_is_said_once(runs, tmp_path):
    runs({"a": [0.2, 0.4, 0.9]}, {"a": [0.2, 0.4, 0.9]}, metric="f1", samples=False)
    (check,) = measure_checks(*read(tmp_path), GatePolicy())
    assert check.problem == "cannot be paired: no samples logged"
    assert (check.baseline, check.candidate, check.p) == (0.5, 0.5, None)


def test_one_run_without_samples_is_reason_enough(factory, tmp_path):
    for name in ("old", "new"):
        factory.write_run(tmp_path / name, {"a": SCORES["a"]}, samples=name == "old")
    (check,) = measure_checks(*read(tmp_path), GatePolicy())
    assert check.problem == "cannot be paired: no samples logged"


def test_each_reason_against_pairing_is_said(factory, tmp_path):
    factory.write_run(tmp_path / "old", {"a": [0.2, 0.4, 0.9]}, metric="f1", samples=False)
    factory.write_run(tmp_path / "new", {"a": [0.2, 0.4, 0.9]}, metric="f1")

    def no_mean(data: dict) -> None:
        data["results"]["a"]["f1,none"] = 0.7
        data["configs"]["a"]["metric_list"][0]["aggregation"] = "f1"

    edit(tmp_path / "new", no_mean)
    (check,) = measure_checks(*read(tmp_path), GatePolicy())
    assert (
        check.problem
        == "cannot be paired: f1 is scored over all items at once and no samples logged"
    )


def test_items_without_a_partner_are_counted(factory, tmp_path):
    rows = [factory.sample(i, 1.0) for i in range(13)]
    factory.write_run(tmp_path / "old", {"a": rows[:10]})
    factory.write_run(tmp_path / "new", {"a": rows[3:]})
    (check,) = measure_checks(*read(tmp_path), GatePolicy())
    assert check.problem == "6 items without a partner"


def test_every_fault_of_the_runs_is_told_before_lonely_items(factory, tmp_path):
    rows = [factory.sample(i, 1.0) for i in range(13)]
    factory.write_run(tmp_path / "old", {"a": rows[:10]})
    factory.write_run(tmp_path / "new", {"a": rows[3:]}, version=2.0, shots=5)
    (check,) = measure_checks(*read(tmp_path), GatePolicy())
    assert check.problem == "version 1.0 against 2.0, 0 shots against 5"


@pytest.mark.parametrize("directions", [(True, False), (None, None), (True, None), (None, False)])
def test_without_one_direction_nothing_is_judged(factory, tmp_path, directions):
    for name, direction in zip(("old", "new"), directions, strict=True):
        factory.write_run(tmp_path / name, SCORES, higher_is_better=direction)
    for check in measure_checks(*read(tmp_path), GatePolicy()):
        assert check.problem == "the results do not say whether a higher acc is better"
        assert check.p is None


def test_tasks_of_opposite_directions_have_no_average_to_judge(runs, tmp_path):
    runs(SCORES, SCORES, groups=GROUP)
    for name in ("old", "new"):
        edit(tmp_path / name, lambda data: data["higher_is_better"]["b"].update(acc=False))
    checks = measure_checks(*read(tmp_path), GatePolicy())
    assert [check.problem for check in checks[:2]] == ["", ""]
    assert checks[2].problem == "its tasks do not agree whether a higher acc,none is better"


def test_a_task_without_any_metric(runs, tmp_path):
    runs(SCORES, SCORES)
    edit(tmp_path / "old", lambda data: data["results"]["a"].pop("acc,none"))
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "a")
    assert check.problem == "no metric at all in the baseline"


def test_of_two_broken_files_the_baseline_s_is_named(runs, tmp_path):
    runs(SCORES, SCORES)
    for name in ("old", "new"):
        path = next((tmp_path / name).glob("samples_a_*"))
        path.write_text(path.read_text()[:-100])
    check = only(measure_checks(*read(tmp_path), GatePolicy()), "a")
    assert check.problem.startswith(str(tmp_path / "old"))


def test_one_run_of_fractions_makes_a_check_of_fractions(runs):
    whole, parts = [1.0, 0.0, 1.0, 0.0] * 5, [0.5, 0.0, 1.0, 0.25] * 5
    (check,) = measure_checks(*runs({"a": whole}, {"a": parts}, metric="f1"), GatePolicy())
    assert (check.binary, check.problem) == (False, "")


def test_a_broken_file_is_named_where_it_is(runs, tmp_path):
    runs(SCORES, SCORES, groups=GROUP)
    path = next((tmp_path / "new").glob("samples_b_*"))
    path.write_text(path.read_text()[:-100])
    checks = measure_checks(*read(tmp_path), GatePolicy())
    assert only(checks, "b").problem.startswith(f"{path} is broken or only half written")
    assert not only(checks, "b").problem.endswith(".")
    assert only(checks, "g").problem == f"b: {only(checks, 'b').problem}"


# --- what is checked ----------------------------------------------------------------------------


def kinds(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.kind, check.name) for check in checks]


def test_everything_of_the_baseline_is_checked_once_and_then_what_is_named(runs):
    made = runs(SCORES, {**SCORES, "z": SCORES["a"]}, groups=GROUP)
    assert kinds(measure_checks(*made, GatePolicy())) == [
        ("task", "a"),
        ("task", "b"),
        ("group", "g"),
    ]
    policy = GatePolicy(
        tasks={"b": Limits(max_drop=0.1), "z": Limits()},
        groups={"g": Limits(min_pairs=7), "h": Limits()},
        required=["y", "g", "a"],
    )
    named = measure_checks(*made, policy)
    assert kinds(named) == [
        *(("task", name) for name in ("a", "b", "z", "y")),
        *(("group", name) for name in ("g", "h")),
    ]
    assert only(named, "b").limits.max_drop == 0.1
    assert only(named, "g").limits.min_pairs == 7
    listed = policy.model_copy(update={"only_listed": True})
    assert kinds(measure_checks(*made, listed)) == [
        *(("task", name) for name in ("b", "z", "y", "a")),
        *(("group", name) for name in ("g", "h")),
    ]


def test_a_group_of_the_candidate_alone_can_be_required(factory, tmp_path):
    factory.write_run(tmp_path / "old", SCORES)
    factory.write_run(tmp_path / "new", SCORES, groups=GROUP)
    check = only(measure_checks(*read(tmp_path), GatePolicy(required=["g"])), "g")
    assert (check.kind, check.problem) == ("group", "missing in the baseline")


def test_new_tasks_are_noted_unless_named(runs, tmp_path):
    made = runs({"a": SCORES["a"]}, dict.fromkeys("awxyz", SCORES["a"]))
    policy = GatePolicy(tasks={"w": Limits()}, groups={"x": Limits()}, required=["y"])
    verdict = gate(*made, policy)
    assert verdict.notes == ["z is not judged: the baseline does not have it"]
    assert (verdict.baseline, verdict.candidate) == (str(tmp_path / "old"), str(tmp_path / "new"))


def test_the_same_files_are_no_two_runs(runs):
    old, _ = runs(SCORES, SCORES, groups=GROUP)
    checks = measure_checks(
        old, old, GatePolicy(tasks={"b": Limits(max_drop=0.1)}, required=["b", "c"])
    )
    assert kinds(checks) == [("task", "a"), ("task", "b"), ("task", "c")]
    assert {check.problem for check in checks} == {"baseline and candidate are the same files"}
    assert only(checks, "b").limits.max_drop == 0.1
    assert only(checks, "c").limits == GatePolicy().limits("task", "c")
