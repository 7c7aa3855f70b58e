"""A comparison's numbers by hand, and what it refuses or says aloud."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.comparison import Comparison, Difference
from gks_eval.evidence.gate import gate
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.runs import baseline_first, find_runs, one_run
from gks_eval.evidence.stats.paired_test import CountTest
from gks_eval.evidence.stats.wilson import wilson_interval


def _row(comparison, name):
    return next(row for row in comparison.rows if row.name == name)


@pytest.fixture
def planted(factory, tmp_path):
    """Two runs: `a` of 200 items, 6 gains and 20 losses; `b` of 101, 9 gains and 3 losses."""
    first_a, second_a = factory.planted(200, 6, 20, 100)
    first_b, second_b = factory.planted(101, 9, 3, 40)
    groups = {"g": (("a", "b"), False), "w": (("a", "b"), True)}
    factory.write_run(tmp_path / "old", {"a": first_a, "b": first_b}, groups=groups)
    factory.write_run(tmp_path / "new", {"a": second_a, "b": second_b}, groups=groups)
    return find_runs([str(tmp_path / "old"), str(tmp_path / "new")])


def test_a_paired_accuracy_by_hand(planted):
    row = _row(compare(planted), "a")
    old, new = row.scores["old"], row.scores["new"]
    assert (old.value, new.value, old.n) == (120 / 200, 106 / 200, 200)
    assert (old.low, old.high) == pytest.approx(wilson_interval(120, 200))
    difference = row.differences[0]
    assert difference.difference == pytest.approx(-14 / 200)
    assert (difference.gains, difference.losses, difference.n) == (6, 20, 200)
    assert difference.method == "mcnemar"
    assert difference.p == pytest.approx(stats.binomtest(6, 26).pvalue)
    assert difference.low < -14 / 200 < difference.high < 0
    # sqrt(200) d = 1.959964 sqrt(0.13) + 0.841621 sqrt(0.13 - d^2)
    d = difference.detectable
    assert math.sqrt(200) * d == pytest.approx(
        1.959964 * math.sqrt(0.13) + 0.841621 * math.sqrt(0.13 - d * d), abs=1e-5
    )


def test_holm_runs_over_the_tasks_and_leaves_groups_out(planted):
    comparison = compare(planted)
    p = {name: _row(comparison, name).differences[0].p for name in ("a", "b")}
    low, high = sorted(p, key=p.get)
    adjusted = {name: _row(comparison, name).differences[0].p_holm for name in ("a", "b")}
    assert adjusted[low] == pytest.approx(min(1.0, 2 * p[low]))
    assert adjusted[high] == pytest.approx(max(adjusted[low], p[high]))
    assert _row(comparison, "g").differences[0].p_holm is None


def test_holm_counts_only_what_was_tested(factory, tmp_path):
    # One item without a sample has no standard error: nothing to test.
    for name, scores in (("x", [0.1, 0.4, 0.6, 0.2]), ("y", [0.2, 0.3, 0.9, 0.4])):
        factory.write_run(tmp_path / name, {"a": scores, "b": scores[:1]}, metric="f1")
        next((tmp_path / name).glob("samples_b_*")).unlink()
    comparison = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")]))
    tested, untested = (_row(comparison, name).differences[0] for name in ("a", "b"))
    assert (untested.method, untested.p, untested.p_holm) == ("none", None, None)
    assert tested.p_holm == tested.p is not None


def test_group_averages_weigh_as_lm_eval_says(planted):
    comparison = compare(planted)
    plain, weighted = _row(comparison, "g"), _row(comparison, "w")
    a, b = -14 / 200, 6 / 101
    assert plain.weighting == "plain"
    assert weighted.weighting == "by size"
    assert plain.differences[0].difference == pytest.approx((a + b) / 2)
    assert weighted.differences[0].difference == pytest.approx((-14 + 6) / 301)
    assert plain.scores["old"].value == pytest.approx((120 / 200 + 43 / 101) / 2)
    assert plain.scores["old"].n == 301
    assert plain.differences[0].method == "item score"


def test_a_group_s_interval_is_that_of_the_normal_formula(planted):
    d = _row(compare(planted), "g").differences[0]
    counts = ((6, 20, 200), (9, 3, 101))
    variance = sum(((g + k) / n - ((g - k) / n) ** 2) / n / 4 for g, k, n in counts)
    half = 1.959964 * math.sqrt(variance)
    assert (d.low, d.high) == pytest.approx((d.difference - half, d.difference + half), abs=0.004)
    squares = sum((g + k) / n / n / 4 for g, k, n in counts)
    assert d.p == pytest.approx(2 * stats.norm.sf(abs(d.difference) / math.sqrt(squares)))
    assert d.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt(variance), rel=0.02)


def test_few_changed_items_are_no_evidence_of_a_drop(factory, tmp_path):
    """Four items fall, none rises: the normal score alone is surer than the 1/16 of a sign test."""
    for metric in ("acc", "f1"):
        for name, fallen in (("old", 0), ("new", 4)):
            scores = [0.25 if metric == "f1" else 0.0] * fallen + [1.0] * (150 - fallen)
            groups = {"g": (("a", "b"), False)}
            tasks = {"a": scores, "b": [1.0] * 150}
            factory.write_run(tmp_path / metric / name, tasks, metric=metric, groups=groups)
        runs = [one_run(str(tmp_path / metric / name)) for name in ("old", "new")]
        checks = {
            outcome.check.name: outcome.check for outcome in gate(*runs, GatePolicy()).outcomes
        }
        # Of another metric than an accuracy 9,999 random subsets stand for all of them.
        near = 0.0 if metric == "acc" else 0.01
        assert checks["a"].p == pytest.approx(1 / 16, abs=near)
        assert checks["g"].p == pytest.approx(1 / 16)
        for name in ("a", "g"):
            assert _row(compare(runs), name).differences[0].p == pytest.approx(1 / 8, abs=near)


def test_an_interval_and_its_p_do_not_contradict_each_other(factory, tmp_path):
    """Four of 72 items fall: a score interval, [-13.43, -0.38], had called that a loss at p 1/8."""
    for name, fallen in (("old", 0), ("new", 4)):
        factory.write_run(tmp_path / name, {"a": [0.0] * fallen + [1.0] * (72 - fallen)})
    (d,) = compare([one_run(str(tmp_path / name)) for name in ("old", "new")]).rows[0].differences
    assert d.p == pytest.approx(1 / 8)
    assert d.low < d.difference == pytest.approx(-4 / 72)
    assert d.high > 0


@pytest.fixture
def lone(factory, tmp_path):
    """Two equal models: a group of 57 tasks, each with one item, half of which came out right."""
    rng = np.random.default_rng(0)
    names = [f"t{i:02}" for i in range(57)]
    for run in ("old", "new"):
        tasks = {name: [float(rng.random() < 0.5)] for name in names}
        factory.write_run(tmp_path / run, tasks, groups={"g": (names, False)})
    return [one_run(str(tmp_path / run)) for run in ("old", "new")]


def test_a_group_with_an_item_a_task_is_tested_over_all_items(lone):
    row = _row(compare(lone), "g")
    (d,) = row.differences
    assert (d.n, d.method) == (57, "item score")
    z = (d.gains - d.losses) / math.sqrt(d.gains + d.losses)
    assert d.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert d.low < 0 < d.high
    # One run alone does not show how the items of a task vary.
    for score in row.scores.values():
        assert (score.low, score.high, score.method) == (None, None, "none")
    verdict = gate(*lone, GatePolicy(min_pairs=1, groups={"g": {}}, only_listed=True))
    assert (verdict.status, verdict.exit_code) == ("pass", 0)
    assert verdict.outcomes[0].check.p == pytest.approx(stats.norm.cdf(z))


@pytest.mark.parametrize("samples", [True, False])
def test_items_that_are_all_alike_give_no_interval_of_no_width(factory, tmp_path, samples):
    groups = {"g": (("a", "b"), True)}
    for name, value in (("old", 0.5), ("new", 0.25)):
        tasks = {"a": [value] * 120, "b": [value] * 120}
        factory.write_run(tmp_path / name, tasks, metric="f1", groups=groups, samples=samples)
    runs = [one_run(str(tmp_path / name)) for name in ("old", "new")]
    for row in compare(runs).rows:
        assert {(s.low, s.high) for s in row.scores.values()} == {(None, None)}
        assert (row.differences[0].low, row.differences[0].high) == (None, None)
    same = compare([runs[0], replace(runs[0], label="again")])
    for row in same.rows:
        d = row.differences[0]
        if samples and row.kind == "group":  # no loss among 240 items: 1 - 0.025^(1/240)
            bound = 1 - 0.025 ** (1 / 240)
            assert (d.low, d.high, d.p) == (pytest.approx(-bound), pytest.approx(bound), 1.0)
        else:
            assert (d.low, d.high, d.p) == (None, None, 1.0 if samples else None)


def test_numbers_depend_on_no_label_and_no_order(factory, tmp_path):
    rng = np.random.default_rng(3)
    groups = {"g": (("a", "b"), False)}
    for name in ("old", "new"):
        tasks = {"a": list(rng.normal(0.5, 0.2, 60)), "b": list(rng.normal(0.4, 0.2, 30))}
        factory.write_run(tmp_path / name, tasks, metric="f1", groups=groups)
    old, new = (one_run(str(tmp_path / name)) for name in ("old", "new"))
    first = compare([old, new])
    renamed = compare([replace(old, label="x"), replace(new, label="y")])
    swapped = compare([new, old])
    for one, other, back in zip(first.rows, renamed.rows, swapped.rows, strict=True):
        assert list(one.scores.values()) == list(other.scores.values())
        assert one.scores == back.scores
        d, e, f = (row.differences[0] for row in (one, other, back))
        assert d.model_copy(update={"candidate": "y"}) == e
        assert (f.p, -f.high, -f.low) == pytest.approx((d.p, d.low, d.high), abs=1e-12)
    # The gate's one-sided test is of the same stream: half of the two-sided p.
    checks = [outcome.check for outcome in gate(old, new, GatePolicy(min_pairs=1)).outcomes]
    p = {row.name: row.differences[0].p for row in first.rows}
    for check in checks[:2]:
        assert min(check.p, 1 - check.p) == pytest.approx(p[check.name] / 2, abs=2e-4)


def test_flips_are_exactly_the_items_that_changed(planted):
    flips = [flip for flip in compare(planted).flips if flip.task == "a"]
    assert sum(flip.change == "gain" for flip in flips) == 6
    assert sum(flip.change == "loss" for flip in flips) == 20
    assert len({(flip.doc_hash, flip.occurrence) for flip in flips}) == 26


def test_continuous_scores_have_their_signs_turned(factory, tmp_path):
    rng = np.random.default_rng(2)
    first = rng.normal(0.5, 0.2, 300)
    second = first + rng.normal(0.02, 0.1, 300)
    factory.write_run(tmp_path / "x", {"a": list(first)}, metric="f1")
    factory.write_run(tmp_path / "y", {"a": list(second)}, metric="f1")
    row = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0]
    d = row.differences[0]
    assert d.method == "sign flips"
    assert not row.binary
    expected = stats.ttest_rel(second, first)
    assert d.p == pytest.approx(expected.pvalue, abs=0.01)
    interval = expected.confidence_interval()
    assert (d.low, d.high) == pytest.approx((interval.low, interval.high), abs=0.002)
    assert row.scores["x"].method == "t"


def test_one_run_of_fractions_makes_the_comparison_one_of_fractions(factory, tmp_path):
    whole, parts = [1.0, 0.0, 1.0, 0.0] * 5, [0.5, 0.0, 1.0, 0.25] * 5
    factory.write_run(tmp_path / "x", {"a": whole}, metric="f1")
    factory.write_run(tmp_path / "y", {"a": parts}, metric="f1")
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    for pair in (runs, runs[::-1]):
        comparison = compare(pair)
        assert comparison.rows[0].differences[0].method == "sign flips"
        assert comparison.flips == []


@pytest.mark.parametrize("logged", [(False, True), (True, False), (False, False)])
def test_without_samples_the_comparison_is_unpaired_and_says_so(factory, tmp_path, logged):
    factory.write_run(tmp_path / "x", {"a": [1.0] * 60 + [0.0] * 40}, samples=logged[0])
    factory.write_run(tmp_path / "y", {"a": [1.0] * 75 + [0.0] * 25}, samples=logged[1])
    row = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0]
    d = row.differences[0]
    assert d.method == "unpaired"
    assert "no samples logged" in d.note
    assert d.difference == pytest.approx(0.15)
    assert row.scores["x"].method == "wilson"
    assert (d.gains, d.losses) == (None, None)


def test_a_metric_that_is_no_mean_is_compared_by_its_standard_error(factory, tmp_path):
    for name in ("x", "y"):
        path = factory.write_run(tmp_path / name, {"a": [0.2, 0.4, 0.9]}, metric="f1")
        data = json.loads(path.read_text())
        data["results"]["a"]["f1,none"] = 0.7 if name == "x" else 0.8
        data["configs"]["a"]["metric_list"][0]["aggregation"] = "f1"
        path.write_text(json.dumps(data))
    d = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0].differences[0]
    assert d.method == "unpaired"
    assert "f1 is scored over all items at once" in d.note
    assert d.difference == pytest.approx(0.1)


def test_samples_that_do_not_add_up_to_the_results_are_refused(factory, tmp_path):
    for name in ("x", "y"):
        path = factory.write_run(tmp_path / name, {"a": [0.0, 1.0, 1.0, 0.0]})
    path.write_text(path.read_text().replace('"acc,none": 0.5', '"acc,none": 0.75'))
    with pytest.raises(ResultsError, match="of two runs"):
        compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")]))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": 2.0}, "version 1.0 against 2.0"), ({"shots": 3}, "0 shots against 3")],
)
def test_other_versions_and_shots_are_refused_unless_forced(factory, tmp_path, change, said):
    factory.write_run(tmp_path / "x", {"a": [1.0, 0.0] * 10})
    factory.write_run(tmp_path / "y", {"a": [1.0, 0.0] * 10}, **change)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    with pytest.raises(ResultsError, match=f"comparable: a in y and x: {said}; run") as caught:
        compare(runs)
    assert "--force" in str(caught.value)
    forced = compare(runs, CompareOptions(force=True))
    assert any(said in note for note in forced.notes)
    assert forced.forced


@pytest.mark.parametrize(("count", "more"), [(4, ""), (5, "; and 1 more"), (7, "; and 3 more")])
def test_the_first_four_faults_are_told_and_the_rest_counted(factory, tmp_path, count, more):
    tasks = {f"t{n}": [1.0, 0.0] for n in range(count)}
    for name, version in (("x", 1.0), ("y", 2.0)):
        factory.write_run(tmp_path / name, tasks, version=version)
    told = "; ".join(f"t{n} in y and x: version 1.0 against 2.0" for n in range(4))
    with pytest.raises(ResultsError, match=f"comparable: {told}{more}; run them with the same"):
        compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")]))


def test_other_prompts_are_refused_unless_forced(factory, tmp_path):
    for name, tail in (("x", ""), ("y", "!")):
        rows = [factory.sample(i, 1.0, prompt=f"Q{i}{tail}") for i in range(8)]
        factory.write_run(tmp_path / name, {"a": rows})
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    with pytest.raises(ResultsError, match="other prompts in 8 of 8 pairs"):
        compare(runs)
    assert compare(runs, CompareOptions(force=True)).rows[0].differences[0].n == 8


def test_items_without_a_partner_are_counted(factory, tmp_path):
    rows = [factory.sample(i, 1.0) for i in range(12)]
    factory.write_run(tmp_path / "x", {"a": rows[:10]})
    factory.write_run(tmp_path / "y", {"a": rows[2:]})
    d = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0].differences[0]
    assert (d.n, d.unpaired_baseline, d.unpaired_candidate) == (8, 2, 2)
    assert "4 items have no partner" in d.note


def test_shuffled_files_with_duplicates_pair_the_same(factory, tmp_path):
    rng = random.Random(1)
    questions = ["twice", "twice", *(f"q{i}" for i in range(30))]
    first = [
        factory.sample(i, float(rng.random() < 0.5), question=q) for i, q in enumerate(questions)
    ]
    second = [
        factory.sample(i, float(rng.random() < 0.5), question=q) for i, q in enumerate(questions)
    ]
    expected = (
        sum(b["acc"] > a["acc"] for a, b in zip(first, second, strict=True)),
        sum(b["acc"] < a["acc"] for a, b in zip(first, second, strict=True)),
    )
    rng.shuffle(second)
    factory.write_run(tmp_path / "x", {"a": first})
    factory.write_run(tmp_path / "y", {"a": second})
    d = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0].differences[0]
    assert (d.gains, d.losses, d.n) == (*expected, 32)


def test_missing_tasks_are_said_and_groups_that_lack_one_are_left_out(factory, tmp_path):
    scores = [1.0, 0.0] * 10
    groups = {"g": (("a", "b"), True)}
    factory.write_run(tmp_path / "x", {"a": scores, "b": scores}, groups=groups)
    factory.write_run(tmp_path / "y", {"a": scores})
    comparison = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")]))
    assert comparison.notes == ["g cannot be averaged for y: no b", "b (acc,none) is missing in y"]
    assert set(_row(comparison, "g").scores) == {"x"}


def test_what_many_runs_lack_is_one_note_of_each_kind(factory, tmp_path):
    names = [f"t{j:02}" for j in range(20)]
    for i in range(12):
        tasks = {n: [1.0, 0.0] for j, n in enumerate(names) if (i + j) % 3}
        stamp = f"2026-01-{i + 1:02}T00-00-00.000001"
        groups = {f"g{k}": ([n for n in names[:6] if n in tasks], False) for k in range(5)}
        model_args = f"pretrained=m,n={i}"
        factory.write_run(tmp_path / "m", tasks, groups=groups, stamp=stamp, model_args=model_args)
    notes = compare(find_runs([str(tmp_path / "m")])).notes
    assert len(notes) == 2
    averages, missing = notes
    assert averages.startswith(
        "40 averages cannot be computed because tasks are missing: g0 for m@n=1 (no t"
    )
    assert averages.endswith("and 37 more")
    assert missing.startswith("of 20 tasks some are missing: m@n=0 lacks 7 (t00 (acc,none), ")
    assert missing.endswith("and 9 more")
    assert all(len(note) < 400 for note in notes)


def test_many_faults_compared_by_force_are_one_note(factory, tmp_path):
    tasks = {f"t{n}": [1.0, 0.0] for n in range(9)}
    for name, version in (("x", 1.0), ("y", 2.0)):
        factory.write_run(tmp_path / name, tasks, version=version)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    (note,) = compare(runs, CompareOptions(force=True)).notes
    assert note.startswith("not comparable, 9 faults: t0 in y and x: version 1.0 against 2.0; ")
    assert note.endswith("; and 6 more")


def test_what_cannot_be_compared_is_refused(factory, tmp_path):
    factory.write_run(tmp_path / "x", {"a": [1.0, 0.0]})
    factory.write_run(tmp_path / "y", {"b": [1.0, 0.0]})
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    with pytest.raises(ResultsError, match="shares no task"):
        compare(runs)
    with pytest.raises(ResultsError, match="two runs"):
        compare(runs[:1])
    with pytest.raises(UsageError, match=r"'acx'; did you mean 'acc'"):
        compare(runs, CompareOptions(metric="acx"))


def test_an_unknown_metric_is_answered_with_those_of_the_selected_tasks(golden):
    runs = find_runs([str(golden / "llama-0"), str(golden / "llama-1")])
    with pytest.raises(UsageError, match="known: exact_match"):
        compare(runs, CompareOptions(metric="acc", tasks=("ev_copy",)))


def test_no_group_of_accuracies_detects_more_than_all(factory, tmp_path):
    scores = {"x": [1.0, 0.0, 1.0, 0.0], "y": [0.0, 1.0, 0.0, 1.0]}
    for name, values in scores.items():
        factory.write_run(tmp_path / name, {"a": values}, groups={"g": (("a",), True)})
    old, new = find_runs([str(tmp_path / name) for name in scores])
    # 2.8016 standard errors of 0.5, two-sided, and 2.4865, one-sided, are more than 1.
    assert _row(compare([old, new]), "g").differences[0].detectable is None
    outcomes = gate(old, new, GatePolicy()).outcomes
    checks = {outcome.check.name: outcome.check for outcome in outcomes}
    assert checks["g"].detectable is None


def test_a_shared_task_without_a_finite_score_is_named(factory, tmp_path):
    for name, value in (("x", math.nan), ("y", 1.0)):
        factory.write_run(tmp_path / name, {"a": [value, 0.0]})
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    with pytest.raises(ResultsError, match=r"no finite score .*a is not compared by acc,none"):
        compare(runs)


def test_an_unknown_task_or_group_is_named_with_the_nearest(planted, factory, tmp_path):
    groups = {"averages": (("arithmetic",), True)}
    factory.write_run(tmp_path / "x", {"arithmetic": [1.0, 0.0]}, groups=groups)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "old")])
    for asked, near in (("arithmetics", "arithmetic"), ("average", "averages")):
        with pytest.raises(UsageError, match=f"group '{asked}'; did you mean '{near}'"):
            compare(runs, CompareOptions(tasks=("a", asked, "zzz")))


def test_a_run_alone_has_scores_and_no_differences(planted):
    comparison = compare(planted[:1], alone=True)
    assert comparison.baseline == "old"
    assert [row.name for row in comparison.rows] == ["a", "b", "g", "w"]
    assert _row(comparison, "a").scores["old"].value == 120 / 200
    assert not any(row.differences for row in comparison.rows)
    assert comparison.notes == []


def test_the_first_run_says_which_tasks_a_group_has(factory, tmp_path):
    scores = {"a": [1.0, 0.0] * 10, "b": [1.0, 0.0] * 10}
    factory.write_run(tmp_path / "x", scores, groups={"g": (("a",), True)})
    factory.write_run(tmp_path / "y", scores, groups={"g": (("a", "b"), True)})
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    assert [row.name for row in compare(runs, CompareOptions(tasks=("g",))).rows] == ["a", "g"]
    assert [row.name for row in compare(runs[::-1], CompareOptions(tasks=("g",))).rows] == [
        "a",
        "b",
        "g",
    ]


def test_a_group_named_brings_its_tasks(planted):
    comparison = compare(planted, CompareOptions(tasks=("g",)))
    assert [row.name for row in comparison.rows] == ["a", "b", "g"]
    assert [row.name for row in compare(planted, CompareOptions(tasks=("b",))).rows] == ["b"]


def test_the_same_files_give_the_same_numbers_in_any_company(planted, factory, tmp_path):
    factory.write_run(tmp_path / "third", {"a": [1.0] * 200, "b": [1.0] * 101})
    third = find_runs([str(tmp_path / "third")])
    alone, together = compare(planted), compare([*planted, *third])
    assert alone.to_json() == compare(planted).to_json()
    for name in ("a", "b", "g"):
        kept = [d for d in _row(together, name).differences if d.candidate == "new"]
        assert _row(alone, name).differences == kept


def test_the_baseline_can_be_chosen(planted):
    assert [run.label for run in baseline_first(planted, "new")] == ["new", "old"]
    with pytest.raises(UsageError, match="did you mean 'new'"):
        baseline_first(planted, "nev")


def test_filters_and_metrics_can_be_named(golden):
    runs = find_runs([str(golden / "llama-0"), str(golden / "llama-1")])
    comparison = compare(runs, CompareOptions(metric="exact_match,letters"))
    assert [row.metric for row in comparison.rows] == ["exact_match,letters"]
    assert {row.metric for row in compare(runs, CompareOptions(metric="acc_norm")).rows} == {
        "acc_norm,none"
    }


def test_real_runs_agree_with_what_lm_eval_recorded(golden):
    runs = find_runs([str(golden / "llama-0"), str(golden / "llama-1")])
    comparison = compare(runs)
    for run in runs:
        for path in run.files:
            recorded = json.loads(path.joinpath("..", path.name).resolve().read_text())["results"]
            for name, entry in recorded.items():
                row = _row(comparison, name)
                assert row.scores[run.label].value == pytest.approx(entry[row.metric])


def test_a_difference_of_which_nothing_is_known_claims_nothing():
    known = {"candidate": "x", "difference": 0.0, "n": 5, "method": "none"}
    unknown = dict.fromkeys(("low", "high", "p"), None)
    assert Difference.model_validate(known | unknown).model_dump(exclude=set(known)) == {
        **unknown,
        **dict.fromkeys(("p_holm", "gains", "losses", "detectable"), None),
        **dict.fromkeys(("clusters", "design_effect", "p_equal", "p_equal_holm"), None),
        "verdict": "",
        "unpaired_baseline": 0,
        "unpaired_candidate": 0,
        "note": "",
    }


def test_the_json_reads_back(planted):
    comparison = compare(planted)
    text = comparison.to_json()
    assert text.startswith('{\n "schema": "gks_eval.compare/1",\n "baseline": "old",\n')
    assert text.endswith("}\n")
    assert Comparison.model_validate_json(text) == comparison


def test_the_csv_holds_every_number(planted):
    from gks_eval.evidence.tables.csv_file import to_csv

    lines = list(csv.DictReader(io.StringIO(to_csv(compare(planted)))))
    assert len(lines) == 8
    line = next(entry for entry in lines if (entry["name"], entry["run"]) == ("a", "new"))
    assert float(line["difference"]) == pytest.approx(-0.07)
    assert line["losses"] == "20"


# --- equivalence ---------------------------------------------------------------------------------

COUNTS = {  # gains, losses of 4,000: within 2 points or not, different or not
    "equal": (100, 104),
    "differs within": (40, 90),
    "differs": (100, 260),
    "open": (700, 640),
}


@pytest.fixture
def four(factory, tmp_path):
    sides = {name: factory.planted(4000, *counts, 1500) for name, counts in COUNTS.items()}
    groups = {"g": (("equal", "open"), False)}
    for place, run in enumerate(("old", "new")):
        tasks = {name: side[place] for name, side in sides.items()}
        factory.write_run(tmp_path / run, tasks, groups=groups)
    return [one_run(str(tmp_path / run)) for run in ("old", "new")]


def test_equality_within_a_margin_is_a_verdict(four):
    comparison = compare(four, CompareOptions(equivalence=0.02))
    p = {}
    for name, (gains, losses) in COUNTS.items():
        (d,) = _row(comparison, name).differences
        assert d.verdict == name
        test = CountTest(gains, losses, 4000)
        worse, better = test.shown_p(0.02), CountTest(losses, gains, 4000).shown_p(0.02)
        p[name] = max(worse, better)
        assert d.p_equal == pytest.approx(p[name])
        # The interval at 90% lies within the margin exactly where both tests reject.
        low, high = test.interval(0.9)
        assert (low > -0.02 and high < 0.02) == (d.p_equal < 0.05)
    (d,) = _row(comparison, "g").differences
    z = [(60 / 8000 - 4 / 8000 + side * 0.02, side) for side in (1, -1)]
    n, parts = 4000, (COUNTS["equal"], COUNTS["open"])
    squares = {
        side: sum(
            ((1 + side * 0.02) ** 2 * g + (1 - side * 0.02) ** 2 * k + 0.02**2 * (n - g - k))
            / (2 * n) ** 2
            for g, k in parts
        )
        for side in (1, -1)
    }
    expected = max(stats.norm.sf(side * x / math.sqrt(squares[side])) for x, side in z)
    assert d.p_equal == pytest.approx(expected)
    assert (d.p_equal_holm, d.verdict) == (None, "equal")
    ordered = sorted(p, key=p.get)
    holm = _row(comparison, ordered[0]).differences[0].p_equal_holm
    assert holm == pytest.approx(min(1.0, 4 * p[ordered[0]]))


def test_a_margin_adds_two_columns(four):
    from gks_eval.evidence.tables.content import difference_table

    table = difference_table(compare(four, CompareOptions(equivalence=0.02)))
    assert table.columns[4:6] == ["n", "verdict"]
    assert table.columns[-1] == "p within 2 points"
    assert [row[5] for row in table.rows[:4]] == list(COUNTS)
    assert "verdict" not in difference_table(compare(four)).columns


def test_other_metrics_than_accuracies_have_no_margin(factory, tmp_path):
    rng = np.random.default_rng(0)
    for run in ("old", "new"):
        factory.write_run(tmp_path / run, {"a": list(rng.random(50))}, metric="f1")
    runs = [one_run(str(tmp_path / run)) for run in ("old", "new")]
    (d,) = compare(runs, CompareOptions(equivalence=0.02)).rows[0].differences
    assert (d.p_equal, d.verdict) == (None, "")


def test_equal_runs_of_few_items_are_not_shown_to_be_equal(factory, tmp_path):
    for run in ("old", "new"):
        factory.write_run(tmp_path / run, {"a": [1.0] * 90})
    runs = [one_run(str(tmp_path / run)) for run in ("old", "new")]
    (d,) = compare(runs, CompareOptions(equivalence=0.02)).rows[0].differences
    assert (d.p_equal, d.verdict) == (pytest.approx(0.98**90), "open")


# --- several metrics -----------------------------------------------------------------------------


@pytest.fixture
def several(factory, tmp_path):
    for place, run in enumerate(("old", "new")):
        rows = [factory.sample(i, float((i * (place + 2)) % 3 == 0)) for i in range(120)]
        for row in rows:
            row |= {"metrics": ["acc", "acc_norm"], "acc_norm": float(row["doc_id"] % 4 == 0)}
        mean, norm = (sum(row[m] for row in rows) / 120 for m in ("acc", "acc_norm"))
        entry = {"alias": "a", "sample_len": 120, "acc,none": mean, "acc_norm,none": norm}
        higher = {"a": {"acc": True, "acc_norm": True}}
        change = {"results": {"a": entry}, "higher_is_better": higher}
        factory.write_run(tmp_path / run, {"a": rows}, change=change)
    return [one_run(str(tmp_path / run)) for run in ("old", "new")]


def test_several_metrics_have_a_row_each(several):
    rows = compare(several, CompareOptions(metric=("acc", "acc_norm"))).rows
    assert [(row.title, row.metric) for row in rows] == [
        ("a (acc)", "acc,none"), ("a (acc_norm)", "acc_norm,none"),
    ]  # fmt: skip
    found = [row.differences[0] for row in rows]
    assert found[0].p_holm == pytest.approx(min(1, 2 * found[0].p))
    (row,) = compare(several, CompareOptions(metric=("acc_norm",))).rows
    assert row.title == "a"
    notes = compare(several, CompareOptions(metric=("acc", "f1"))).notes
    assert "a has no f1 and is left out" in notes


def test_a_gate_checks_several_metrics_and_misses_none(several):
    limits = {"metric": ("acc", "acc_norm", "accc")}
    verdict = gate(*several, GatePolicy(tasks={"a": limits}, only_listed=True))
    assert [(o.check.name, o.status) for o in verdict.outcomes][1:] == [
        ("a (acc_norm)", "pass"), ("a (accc)", "unjudged"),
    ]  # fmt: skip
    assert verdict.outcomes[0].check.name == "a (acc)"
    assert verdict.outcomes[2].reasons == ["no metric accc in the baseline"]
