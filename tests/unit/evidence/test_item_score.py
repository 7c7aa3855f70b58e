"""The item score against loops, McNemar, roots by brute force, and sign flips by all patterns."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from gks_eval.evidence.stats.clustered_mean import clustered_interval
from gks_eval.evidence.stats.item_score import FEW, ItemScore, exact_p, item_score


def _of_counts(gains: int, losses: int, n: int) -> ItemScore:
    return item_score([np.array([1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses))],
                      [1.0])  # fmt: skip


def _linked(seed: int) -> tuple[list[np.ndarray], list[float], list[list[str]]]:
    """Three tasks in which items of the same number are linked, with unequal weights."""
    rng = np.random.default_rng(seed)
    tasks = [rng.integers(-1, 2, n).astype(float) for n in (40, 25, 40)]
    labels = [[f"q{i}" for i in range(40)], [f"lone {i}" for i in range(25)],
              [f"q{i}" for i in range(40)]]  # fmt: skip
    return tasks, [0.5, 0.2, 0.3], labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.3])
def test_the_score_is_that_of_a_loop_over_clusters(seed, tolerance):
    tasks, weights, labels = _linked(seed)
    sums: dict[str, float] = {}
    for values, weight, names in zip(tasks, weights, labels, strict=True):
        for d, name in zip(values, names, strict=True):
            sums[name] = sums.get(name, 0.0) + weight / len(values) * (d + tolerance)
    expected = sum(sums.values()) / math.sqrt(sum(s * s for s in sums.values()))
    score = item_score(tasks, weights, labels)
    assert score.z(tolerance) == pytest.approx(expected)
    assert (score.clusters, score.items) == (65, 105)
    assert score.less_p(-tolerance) == pytest.approx(stats.norm.cdf(expected))
    assert score.shown_p(tolerance) == pytest.approx(stats.norm.sf(expected))


@pytest.mark.parametrize(("gains", "losses"), [(3, 9), (12, 30), (40, 41), (0, 15)])
def test_without_clusters_it_is_mcnemar_s_test(gains, losses):
    from statsmodels.stats.contingency_tables import mcnemar

    score = _of_counts(gains, losses, 300)
    expected = mcnemar([[0, gains], [losses, 0]], exact=False, correction=False)
    assert score.z() ** 2 == pytest.approx(expected.statistic)
    assert score.two_sided_p() == pytest.approx(expected.pvalue)
    assert score.design_effect == 1.0


@given(
    seed=st.integers(0, 10_000),
    confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
    link=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_the_interval_holds_what_the_test_does_not_reject(seed, confidence, link):
    tasks, weights, labels = _linked(seed)
    score = item_score(tasks, weights, labels if link else None)
    q = stats.norm.isf((1 - confidence) / 2)

    def miss(delta: float) -> float:
        return abs(score.z(-delta)) - q

    low, high = score.interval(confidence)
    d = sum(w * t.mean() for w, t in zip(weights, tasks, strict=True))
    assert score.change == pytest.approx(d)
    assert low == pytest.approx(brentq(miss, -1.0, d))
    assert high == pytest.approx(brentq(miss, d, 1.0))
    assert (low > 0 or high < 0) == (score.two_sided_p() < round(1 - confidence, 12))
    alpha = (1 - confidence) / 2
    assert score.worst(alpha) == pytest.approx(low)
    assert score.shown_p(-low) == pytest.approx(alpha)
    assert score.turned().interval(confidence) == pytest.approx((-high, -low))


@given(
    gains=st.integers(0, 9),
    losses=st.integers(0, 9),
    unchanged=st.integers(0, 300),
    confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
@settings(deadline=None, max_examples=150)
def test_few_changes_are_judged_exactly(gains, losses, unchanged, confidence):
    assume(0 < gains + losses < FEW)
    n = gains + losses + unchanged
    score = _of_counts(gains, losses, n)
    exact = stats.binomtest(gains, gains + losses)
    assert score.two_sided_p() == pytest.approx(exact.pvalue)
    low, high = score.interval(confidence)
    assert (low > 0 or high < 0) == (exact.pvalue < round(1 - confidence, 12))
    assert -1 <= low <= (gains - losses) / n <= high <= 1
    # Clopper-Pearson's upper bound of the share of worsened items
    alpha = (1 - confidence) / 2
    share = stats.binomtest(losses, n).proportion_ci(confidence, method="exact").high
    assert score.worst(alpha) == pytest.approx(-share)
    if share < 1:
        assert score.shown_p(share) == pytest.approx(alpha)
    assert score.shown_p(0.0) == 1.0


def test_a_regression_of_few_changes_needs_the_exact_test_too():
    # Eight losses of 60, no gain: 2^-8 exactly; z = sqrt(8) alone gives 0.0023
    score = _of_counts(0, 8, 60)
    assert score.less_p() == pytest.approx(2**-8)
    assert stats.norm.cdf(score.z(0.001)) < score.less_p(-0.001) == pytest.approx(2**-8)
    assert score.less_p(-0.2) == stats.norm.cdf(score.z(0.2))


def test_no_change_is_shown_by_many_items_only():
    few, many = _of_counts(0, 0, 20), _of_counts(0, 0, 500)
    assert few.two_sided_p() == many.two_sided_p() == 1.0
    assert few.shown_p(0.02) == pytest.approx(0.98**20)
    assert many.shown_p(0.02) == pytest.approx(0.98**500)
    assert many.interval() == pytest.approx((0.025 ** (1 / 500) - 1, 1 - 0.025 ** (1 / 500)))
    assert (few.design_effect, few.z()) == (None, 0.0)


def test_a_bound_of_unequal_weights_is_conservative():
    """Rare losses all in the heavy items: the worst case of the bound."""
    rng = np.random.default_rng(0)
    sizes, missed = (20, 400), 0
    for _ in range(1000):
        heavy = -(rng.random(sizes[0]) < 0.1).astype(float)
        score = item_score([heavy, np.zeros(sizes[1])], [0.5, 0.5])
        if score.changed < FEW:
            missed += score.worst(0.05) > -0.05
            assert score.worst(0.05) <= _of_counts(0, score.worse, 420).worst(0.05)
    assert missed == 0


def test_scores_without_a_range_have_no_bound_from_few_changes():
    score = item_score([np.array([0.0, 30.0, -2.0] + [0.0] * 90)], [1.0], unit=False)
    assert (score.interval(), score.worst(0.05), score.shown_p(0.5)) == (None, None, 1.0)
    many = item_score([np.random.default_rng(0).normal(4, 3, 50)], [1.0], unit=False)
    low, high = many.interval()
    assert 1 < low < 4 < high


def test_items_that_all_changed_alike_have_a_p_but_no_interval():
    score = item_score([np.full(60, -0.25)], [1.0])
    assert score.two_sided_p() == pytest.approx(2 * stats.norm.sf(60**0.5))
    assert score.interval() is None


def test_items_that_cancel_within_a_cluster_count_as_unchanged():
    values = np.array([0.1, 0.2, -0.3, 1.0])
    score = item_score([values], [1.0], [["a", "a", "a", "b"]])
    assert (score.changed, score.worse, score.clusters) == (1, 0, 2)


def test_linked_items_that_change_alike_have_a_design_effect():
    values = np.tile([1.0, -1.0, 0.0, 0.0], 30)
    score = item_score([values] * 3, [1 / 3] * 3, [[str(i) for i in range(120)]] * 3)
    assert score.design_effect == pytest.approx(3.0)
    assert score.variance == pytest.approx(60 / 120**2)
    assert score.items == 3 * score.clusters


def test_few_weights_dominate_and_leave_no_bound():
    tasks = [np.array([1.0, 0.0]), np.tile([1.0, -1.0, 0.0], 20)]
    assert item_score(tasks, [0.9, 0.1]).interval() == (-1.0, 1.0)


@given(st.lists(st.integers(-8, 8).filter(bool).map(lambda i: i / 4), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_the_exact_companion_flips_every_sign(values):
    totals = [math.fsum(s * v for s, v in zip(signs, values, strict=True))
              for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    expected = sum(s <= math.fsum(values) + 1e-9 for s in totals) / len(totals)
    assert exact_p(np.array([*values, 0.0, 0.0])) == pytest.approx(expected)


def test_the_exact_companion_is_near_the_score_with_many_changes():
    tasks, weights, labels = _linked(3)
    score = item_score(tasks, weights, labels)
    assert exact_p(score.sums) == pytest.approx(score.less_p(), abs=0.02)
    assert exact_p(score.sums) == exact_p(score.sums[::-1])


def test_a_task_without_items_is_refused():
    for tasks in ([], [np.array([])]):
        with pytest.raises(ValueError):
            item_score(tasks, [1.0] * len(tasks))


# --- a run's own mean -----------------------------------------------------------------------------


def test_the_interval_of_one_task_is_the_t_interval():
    values = np.random.default_rng(0).normal(3, 1, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert clustered_interval([values], [1.0], 0.9) == pytest.approx(tuple(expected))


def test_a_mean_over_tasks_has_the_stratified_variance():
    rng = np.random.default_rng(1)
    tasks, weights = [rng.random(n) for n in (5, 40, 200)], [0.3, 0.3, 0.4]
    low, high = clustered_interval(tasks, weights)
    variance = sum(w * w * t.var(ddof=1) / t.size for w, t in zip(weights, tasks, strict=True))
    assert (high - low) / 2 == pytest.approx(stats.t.isf(0.025, 242) * variance**0.5)
    assert (low + high) / 2 == pytest.approx(
        sum(w * t.mean() for w, t in zip(weights, tasks, strict=True))
    )


def test_copies_of_an_item_add_nothing_to_a_clustered_mean():
    values = np.random.default_rng(2).random(400)
    labels = [str(i) for i in range(400)]
    once = clustered_interval([values], [1.0])
    thrice = clustered_interval([values] * 3, [1 / 3] * 3, clusters=[labels] * 3)
    assert thrice == pytest.approx(once, abs=1e-3)


def test_items_without_a_spread_have_no_interval_and_accuracies_stay_within_0_and_1():
    assert clustered_interval([np.array([1.0]), np.array([0.0, 1.0])], [0.5, 0.5]) is None
    assert clustered_interval([np.ones(9)], [1.0]) is None
    low, high = clustered_interval([np.array([1.0] * 9 + [0.0])], [1.0], unit=True)
    assert low > 0.0
    assert high == 1.0


def test_an_interval_agrees_with_the_test_where_one_item_has_half_the_weight():
    """The score then rejects a band of changes around 0, and neither -1 nor 1."""
    gains = np.array([1.0] * 12 + [0.0] * 8)
    score = item_score([np.zeros(1), gains], [0.5, 0.5])
    assert score.two_sided_p() == pytest.approx(2 * stats.norm.sf(12**0.5))
    low, high = score.interval()
    assert 0.0 < low <= score.change <= high == 1.0
    assert score.turned().interval() == (-high, -low)
    even = item_score([np.zeros(1), np.array([1.0, -1.0] * 10)], [0.5, 0.5])
    assert even.interval() == (-1.0, 1.0)
