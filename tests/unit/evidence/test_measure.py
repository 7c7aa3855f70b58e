"""Measured changes of a task and of a group, against loops and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gks_eval.evidence.measure import Changes, linked, measure_group, measure_task, pair
from gks_eval.evidence.pairing import pair_items
from gks_eval.evidence.records import Metric, TaskResult
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.samples import Item
from gks_eval.evidence.scores import Scores


def changes_of(
    values: Sequence[float], *, binary: bool = False, unit: bool = True, clusters: str = ""
) -> Changes:
    items = [Item(n, (str(n), 0), "", "", {}) for n in range(len(values))]
    found = np.array(values, dtype=float)
    return Changes(found, binary, pair_items(items, items), found, unit, tuple(clusters))


def z(level: float) -> float:
    return -float(stats.norm.ppf(level))


def test_labels_link_only_where_two_items_share_one() -> None:
    assert linked([(), ()], [2, 1]) is None
    assert linked([("a", "b"), ()], [2, 2]) is None
    assert linked([("a", "b"), ("c",)], [2, 1]) is None
    found = linked([("a", "b"), (), ("b",)], [2, 2, 1])
    assert found is not None
    flat = [label for labels in found for label in labels]
    equal = {(i, j) for i in range(5) for j in range(i) if flat[i] == flat[j]}
    assert equal == {(4, 1)}
    # Items without links stay apart from those of the same place in another task.
    apart = linked([(), (), ("a", "a")], [2, 2, 2])
    assert apart is not None
    assert len({label for labels in apart for label in labels}) == 5


def test_a_task_of_accuracies_in_closed_form() -> None:
    values = [1.0] * 14 + [-1.0] * 26 + [0.0] * 60
    found = measure_task(changes_of(values, binary=True))
    share = 40 / 100
    assert (found.n, found.gains, found.losses, found.units) == (100, 14, 26, 100)
    assert (found.variance, found.change) == (pytest.approx(share), pytest.approx(-0.12))
    assert (found.clusters, found.design_effect) == (None, None)
    assert found.test.two_sided_p() == pytest.approx(stats.binomtest(14, 40).pvalue)
    for alpha, two_sided in ((0.05, True), (0.01, False)):
        tail = z(alpha / 2 if two_sided else alpha)
        d = found.detectable(alpha, two_sided)
        assert d is not None
        reached = tail * math.sqrt(share) + z(0.2) * math.sqrt(share - d * d)
        assert math.sqrt(100) * d == pytest.approx(reached)
    assert found.detectable() == pytest.approx(found.detectable(0.05, two_sided=True))
    needed = ((z(0.05) * math.sqrt(share + 0.03**2) + z(0.2) * math.sqrt(share)) / 0.03) ** 2
    assert found.needed(0.03, 0.05) == math.ceil(needed)
    shown, less = found.test.shown_p(0.2), found.test.less_p(0.2)
    assert shown > less
    assert found.equal_p(0.2) == pytest.approx(shown)
    turned = measure_task(changes_of([-one for one in values], binary=True))
    assert turned.equal_p(0.2) == pytest.approx(shown)


def test_a_task_of_other_scores_in_closed_form() -> None:
    values = [0.25, -1.5, 3.0, 0.0, 2.0, -0.5, 1.0, 0.75]
    found = measure_task(changes_of(values, unit=False))
    mean = sum(values) / 8
    variance = sum((one - mean) ** 2 for one in values) / 8
    assert (found.binary, found.units, found.n) == (False, 8, 8)
    assert found.variance == pytest.approx(variance)
    # It may exceed 1, which no change of an accuracy does.
    detectable = (z(0.025) + z(0.2)) * math.sqrt(variance / 8)
    assert detectable > 1
    assert found.detectable() == pytest.approx(detectable)


def test_the_mid_p_is_passed_on() -> None:
    values = [1.0] * 3 + [-1.0] * 9 + [0.0] * 8
    exact, mid = (measure_task(changes_of(values, binary=True), mid=mid) for mid in (False, True))
    half = stats.binom.pmf(3, 12, 0.5)
    assert mid.test.two_sided_p() == pytest.approx(exact.test.two_sided_p() - half)


def test_a_task_with_linked_items_counts_clusters() -> None:
    values, clusters = [1.0, 1.0, -1.0, 0.0, 1.0, 0.0], "aabbcd"
    found = measure_task(changes_of(values, binary=True, clusters=clusters))
    sums = dict.fromkeys(clusters, 0.0)
    for one, name in zip(values, clusters, strict=True):
        sums[name] += one / 6
    assert (found.clusters, found.units, found.n) == (4, 1, 6)
    squares = sum(one**2 for one in values) / 36
    assert found.design_effect == pytest.approx(sum(s * s for s in sums.values()) / squares)
    alone = measure_task(changes_of(values, binary=True, clusters="abcdef"))
    assert (alone.clusters, alone.units) == (None, 6)


def test_a_group_in_closed_form() -> None:
    first, second = [1.0] * 5 + [-1.0] * 9 + [0.0] * 26, [1.0] * 2 + [-1.0] * 6 + [0.0] * 2
    tasks = {"x": changes_of(first, binary=True), "y": changes_of(second, binary=True)}
    for weighted in (False, True):
        found = measure_group(tasks, weighted)
        sizes = [1 / 50] * 50 if weighted else [1 / 80] * 40 + [1 / 20] * 10
        parts = [size * one for size, one in zip(sizes, [*first, *second], strict=True)]
        change = sum(parts)
        spread = sum((s - change * a) ** 2 for s, a in zip(parts, sizes, strict=True))
        assert (found.n, found.gains, found.losses, found.units) == (50, 7, 15, 1)
        assert found.change == pytest.approx(change)
        assert found.variance == pytest.approx(spread)
        assert (found.clusters, found.design_effect, found.binary) == (None, None, True)
        detectable = (z(0.05) + z(0.2)) * math.sqrt(spread)
        assert found.detectable(0.05, two_sided=False) == pytest.approx(detectable)
        wide = 50 * spread
        needed = ((z(0.05) * math.sqrt(wide + 0.04**2) + z(0.2) * math.sqrt(wide)) / 0.04) ** 2
        assert found.needed(0.04, 0.05) == math.ceil(needed)


def test_a_group_of_accuracies_detects_no_more_than_1_and_other_scores_may() -> None:
    values = [1.0, -1.0, 1.0]
    assert measure_group({"x": changes_of(values, binary=True)}, weighted=True).detectable() is None
    found = measure_group({"x": changes_of(values, unit=False)}, weighted=True).detectable()
    assert found == pytest.approx((z(0.025) + z(0.2)) * math.sqrt(8 / 9 / 3))


def test_one_task_of_unbounded_scores_leaves_a_group_of_few_changes_without_bound() -> None:
    bounded, free = changes_of([0.5, 0.0, -0.25]), changes_of([0.5, 0.0, -0.25], unit=False)
    assert measure_group({"x": bounded, "y": bounded}, weighted=True).test.interval(0.95)
    for tasks in ({"x": bounded, "y": free}, {"x": free, "y": bounded}):
        assert measure_group(tasks, weighted=True).test.interval(0.95) is None


def test_changes_where_lower_is_better_are_turned() -> None:
    turned = changes_of([0.5, 0.0, -0.25, 1.0]).times(-1.0)
    assert turned.values.tolist() == [-0.5, 0.0, 0.25, -1.0]
    assert (turned.gains, turned.losses) == (1, 2)
    assert [gain for _, gain in turned.changed()] == [False, True, False]


@pytest.fixture(scope="module")
def task(golden: Path) -> TaskResult:
    return one_run(str(golden / "llama-0")).tasks["ev_maths"]


def scores_of(
    task: TaskResult, values: Sequence[float], clusters: str = "", *, zero_one: bool = False
) -> Scores:
    labels = [label.strip() for label in clusters] or [""] * len(values)
    items = [
        Item(n, (str(n), 0), "", "", {"acc": value}, cluster=label)
        for n, (value, label) in enumerate(zip(values, labels, strict=True))
    ]
    metric = Metric("acc", "none", sum(values) / len(values), None, higher_is_better=True)
    return Scores(task, metric, items, "", zero_one, len(items), zero_one)


def test_a_pair_of_runs_item_by_item(task: TaskResult) -> None:
    first, second = [0.0, 0.5, 0.25, 1.0], [0.5, 0.5, 0.0, 1.0]
    found = pair(scores_of(task, first), scores_of(task, second)).changes
    assert found is not None
    assert found.values.tolist() == found.by_item.tolist() == [0.5, 0.0, -0.25, 0.0]
    assert (found.binary, found.unit, found.clusters) == (False, True, ())
    for one, other in ((first, [2.0, *second[1:]]), ([-0.5, *first[1:]], second)):
        wide = pair(scores_of(task, one), scores_of(task, other)).changes
        assert wide is not None
        assert not wide.unit
    right = scores_of(task, [0.0, 1.0, 1.0, 1.0], zero_one=True)
    both = pair(right, scores_of(task, [1.0, 0.0, 1.0, 1.0], zero_one=True)).changes
    assert both is not None
    assert both.binary
    for runs in ((right, scores_of(task, second)), (scores_of(task, first), right)):
        mixed = pair(*runs).changes
        assert mixed is not None
        assert not mixed.binary


def test_links_of_either_run_count_and_the_first_run_has_precedence(task: TaskResult) -> None:
    values = [0.0, 0.5, 0.25, 1.0]

    def groups(first: str, second: str) -> set[tuple[int, ...]]:
        found = pair(scores_of(task, values, first), scores_of(task, values, second)).changes
        assert found is not None
        labels = found.clusters
        return {tuple(i for i in range(4) if labels[i] == one) for one in labels}

    assert groups("aab ", "    ") == {(0, 1), (2,), (3,)}
    assert groups("    ", "aab ") == {(0, 1), (2,), (3,)}
    assert groups("aab ", "aba ") == {(0, 1), (2,), (3,)}
    assert groups("  b ", "aab ") == {(0, 1), (2,), (3,)}
    assert groups("a   ", "    ") == {(0,), (1,), (2,), (3,)}


def test_a_run_without_items_has_no_changes(task: TaskResult) -> None:
    items = scores_of(task, [0.0, 1.0])
    none = replace(items, items=None)
    for runs in ((items, none), (none, items), (none, none)):
        assert pair(*runs).changes is None


def test_an_item_of_a_perplexity_gains_where_its_text_is_less_likely(task: TaskResult) -> None:
    """`higher` is of the metric; which direction is better is applied later."""
    runs = []
    for logs in ([-6.0, -4.0, -3.0], [-4.0, -9.0, -3.0]):
        items = [
            Item(n, (str(n), 0), "", "", {}, pairs={"word_perplexity": (log, 2.0)})
            for n, log in enumerate(logs)
        ]
        value = math.exp(-sum(logs) / 6)
        metric = Metric("word_perplexity", "none", value, None, higher_is_better=False)
        runs.append(Scores(task, metric, items, "", False, 3, False))
    found = pair(*runs).changes
    assert found is not None
    assert found.by_item.tolist() == [-2.0, 5.0, 0.0]
    assert (found.gains, found.losses, found.unit) == (1, 1, False)
    assert found.values.mean() == pytest.approx(math.exp(16 / 6) - math.exp(13 / 6))
