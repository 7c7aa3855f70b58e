"""Every statistic against scipy, a closed form, a brute-force maximum likelihood, or by hand."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.paired_counts import less_p, paired_interval, signed_root
from gks_eval.evidence.stats.paired_test import CountTest, paired_test
from gks_eval.evidence.stats.power import detectable_difference, mcnemar_power, needed_pairs
from gks_eval.evidence.stats.sign_flips import less_p as flip_less_p
from gks_eval.evidence.stats.sign_flips import subset_means, two_sided_p
from gks_eval.evidence.stats.unpaired import mean_difference, mean_interval, proportion_difference
from gks_eval.evidence.stats.wilson import wilson_interval

# --- Wilson -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_is_that_of_scipy(n, share, confidence):
    k = round(n * share)
    low, high = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(k, n, confidence)
    assert found == pytest.approx((low, high), rel=1e-9, abs=1e-12)
    assert (found[0] == 0.0, found[1] == 1.0) == (k == 0, k == n)


def test_wilson_by_hand():
    # 8 of 10, z = 1.959964: centre (0.8 + 0.192073) / 1.384146, half-width from the formula.
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(0, 100)[0] == 0.0
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson_interval(k, n)


# --- McNemar ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(gains=st.integers(0, 300), losses=st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_scipy(gains, losses):
    changed = gains + losses
    expected = stats.binomtest(gains, changed).pvalue if changed else 1.0
    found = CountTest(gains, losses, changed + 10).two_sided_p()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_by_hand():
    # 1 gain, 7 losses: two-sided 2 * (C(8,0) + C(8,1)) / 2^8 = 18 / 256, one-sided 9 / 256.
    assert CountTest(1, 7, 20).two_sided_p() == pytest.approx(18 / 256)
    assert CountTest(1, 7, 20).less_p() == pytest.approx(9 / 256)
    assert CountTest(7, 1, 20).less_p() == pytest.approx(255 / 256)
    assert CountTest(0, 0, 20).two_sided_p() == 1.0


# --- counts of paired changes --------------------------------------------------------------------


def _likelihood_by_brute_force(gains: float, losses: float, n: int, d: float) -> float:
    """Twice the log-likelihood ratio of d, the other probability found by maximising."""
    counts = (gains, losses, n - gains - losses)

    def loss(q: float, d: float = d) -> float:
        cells = (q + d, q, 1.0 - 2.0 * q - d)
        return -sum(k * math.log(max(c, 1e-300)) for k, c in zip(counts, cells, strict=True) if k)

    bounds = (max(0.0, -d), (1.0 - d) / 2.0)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).fun
    return 2.0 * (best - loss(losses / n, (gains - losses) / n))


@pytest.mark.parametrize(("gains", "losses", "n"), [(3, 9, 40), (20, 5, 100), (1.5, 0.5, 15)])
@pytest.mark.parametrize("d", [-0.4, -0.1, 0.0, 0.05, 0.3])
def test_the_root_is_of_the_largest_likelihood(gains, losses, n, d):
    root = signed_root(gains, losses, n, d)
    assert root**2 == pytest.approx(_likelihood_by_brute_force(gains, losses, n, d), rel=1e-6)
    assert (root > 0) == ((gains - losses) / n > d)


@given(gains=st.integers(0, 400), losses=st.integers(1, 400), unchanged=st.integers(0, 400))
@settings(deadline=None)
def test_the_test_of_no_change_is_mcnemar_s_and_continuous_there(gains, losses, unchanged):
    n = gains + losses + unchanged
    exact = stats.binomtest(gains, gains + losses, alternative="less").pvalue
    assert less_p(gains, losses, n) == pytest.approx(exact, rel=1e-9)
    for d in (-1e-9, 1e-9):
        assert less_p(gains, losses, n, d) == pytest.approx(exact, rel=1e-4, abs=1e-14)


def test_without_losses_the_test_is_the_binomial_s():
    for gains, n, d in ((0, 50, 0.03), (4, 100, 0.1)):
        exact = stats.binomtest(gains, n, d, alternative="less").pvalue
        assert less_p(gains, 0, n, d) == pytest.approx(exact)
    assert less_p(4, 0, 100, -0.02) == 1.0
    # 0.025^(1/50) = 0.92888
    assert paired_interval(0, 0, 50) == pytest.approx((-0.07112, 0.07112), abs=1e-5)
    assert paired_interval(10, 0, 10)[1] == 1.0
    assert paired_interval(0, 10, 10)[0] == -1.0
    with pytest.raises(ValueError):
        paired_interval(6, 6, 10)


COUNTS = {
    "gains": st.integers(0, 60),
    "losses": st.integers(0, 60),
    "unchanged": st.integers(0, 2_000),
    "confidence": st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.999]),
}


@given(**COUNTS)
@settings(deadline=None, max_examples=120)
def test_an_interval_of_counts_excludes_zero_exactly_where_p_is_below_alpha(
    gains, losses, unchanged, confidence
):
    n = gains + losses + unchanged
    if n == 0:
        return
    test = CountTest(gains, losses, n)
    low, high = test.interval(confidence)
    assert (low > 0 or high < 0) == (test.two_sided_p() < round(1 - confidence, 12))
    assert -1 <= low <= (gains - losses) / n <= high <= 1
    assert low < high
    assert paired_interval(losses, gains, n, confidence) == pytest.approx((-high, -low), abs=1e-9)


@given(tolerance=st.floats(0, 0.3), **COUNTS)
@settings(deadline=None, max_examples=120)
def test_a_gate_fails_on_counts_exactly_where_the_interval_lies_beyond_the_tolerance(
    gains, losses, unchanged, confidence, tolerance
):
    n = gains + losses + unchanged
    if n == 0:
        return
    test = CountTest(gains, losses, n)
    _, high = test.interval(confidence)
    if abs(high + tolerance) > 1e-9:
        assert (high < -tolerance) == (test.less_p(-tolerance) < round((1 - confidence) / 2, 12))


@given(**COUNTS)
@settings(deadline=None, max_examples=50)
def test_the_test_of_counts_never_rises_with_the_difference(gains, losses, unchanged, confidence):
    n = gains + losses + unchanged
    if n == 0:
        return
    found = [less_p(gains, losses, n, d) for d in np.linspace(-0.99, 0.99, 67)]
    assert all(b <= a + 1e-9 for a, b in pairwise(found))


@given(gains=st.integers(0, 300), losses=st.integers(0, 300), unchanged=st.integers(0, 400))
@settings(deadline=None)
def test_the_mid_p_counts_the_outcome_by_half(gains, losses, unchanged):
    test = CountTest(gains, losses, gains + losses + unchanged, mid=True)
    few, changed = min(gains, losses), gains + losses
    # Fagerland, Lydersen, Laake 2013: the exact p less the probability of the outcome.
    expected = 2 * stats.binom.cdf(few, changed, 0.5) - stats.binom.pmf(few, changed, 0.5)
    assert test.two_sided_p() == pytest.approx(min(1.0, expected), rel=1e-9, abs=1e-300)
    if losses:
        for d in (-1e-9, 1e-9):
            assert test.less_p(d) == pytest.approx(test.less_p(), rel=1e-4, abs=1e-14)


@given(**COUNTS)
@settings(deadline=None, max_examples=100)
def test_a_mid_p_interval_is_its_test_inverted_and_within_the_exact_one(
    gains, losses, unchanged, confidence
):
    n = gains + losses + unchanged
    if n == 0:
        return
    test = CountTest(gains, losses, n, mid=True)
    low, high = test.interval(confidence)
    assert (low > 0 or high < 0) == (test.two_sided_p() < round(1 - confidence, 12))
    exact = CountTest(gains, losses, n).interval(confidence)
    assert exact[0] <= low + 1e-9
    assert high <= exact[1] + 1e-9
    alpha = round((1 - confidence) / 2, 12)
    for d in (low, high, (gains - losses) / n):
        if 0.001 < d < 0.999:
            assert (test.less_p(d + 1e-6) < alpha) == (d + 1e-6 > high)


@pytest.mark.parametrize(("n", "discordance"), [(50, 0.3), (200, 0.05), (200, 0.15), (1000, 0.02)])
def test_the_mid_p_keeps_its_level_here_and_gains_power(n, discordance):
    def rejects(drop: float, mid: bool) -> float:
        m = np.arange(n + 1)
        found = 0.0
        for changed, weight in zip(m, stats.binom.pmf(m, n, discordance), strict=True):
            if weight > 1e-7:
                k = np.arange(changed + 1)
                tail = stats.binom.cdf(k, changed, 0.5)
                p = 2 * tail - stats.binom.pmf(k, changed, 0.5) if mid else 2 * tail
                lost = (discordance - drop) / 2 / discordance
                found += weight * stats.binom.pmf(k, changed, lost)[p < 0.05].sum()
        return found

    assert 2 * rejects(0.0, True) <= 0.0505
    drop = min(3.0 * (discordance / n) ** 0.5, 0.9 * discordance)
    assert 0.01 < rejects(drop, True) - rejects(drop, False) < 0.1


CELLS = [
    (n, share, lean)
    for n in (10, 50, 200)
    for share in (0.005, 0.05, 0.3)
    for lean in (0.0, 0.5, 1.0)
]


@pytest.mark.parametrize(("n", "discordance", "lean"), CELLS)
def test_an_interval_of_counts_covers_at_least_as_often_as_it_says(n, discordance, lean):
    """Summed over all outcomes: a difference is covered where neither test rejects it."""
    d = discordance * lean
    gain, loss = (discordance + d) / 2, (discordance - d) / 2
    missed = 0.0
    for gains in range(n + 1):
        weights = stats.binom.pmf(gains, n, gain) * stats.binom.pmf(
            np.arange(n - gains + 1), n - gains, loss / (1 - gain)
        )
        for losses in np.flatnonzero(weights > 1e-6):
            sides = less_p(gains, int(losses), n, d), less_p(int(losses), gains, n, -d)
            missed += weights[losses] * (min(sides) < 0.025)
    assert missed <= 0.05


# --- paired differences of any size --------------------------------------------------------------


def _by_all_signs(values: list[float]) -> tuple[float, float]:
    """Both one-sided p-values of the sum among all sums with some signs turned."""
    sums = [math.fsum(s * v for s, v in zip(signs, values, strict=True))
            for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    total = math.fsum(values)
    less = sum(s <= total + 1e-9 for s in sums) / len(sums)
    return less, sum(s >= total - 1e-9 for s in sums) / len(sums)


@given(st.lists(st.integers(-8, 8).map(lambda i: i / 4), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_few_differences_have_every_sign_turned(values):
    means = subset_means(np.array(values), 99)
    assert means.size == 2 ** len(values) - 1
    less, greater = _by_all_signs(values)
    assert flip_less_p(means) == pytest.approx(less)
    assert two_sided_p(means) == pytest.approx(min(1.0, 2 * min(less, greater)))


def test_many_differences_have_their_signs_turned_at_random():
    values = np.random.default_rng(1).normal(0.1, 1, 15).round(3)
    less, greater = _by_all_signs(list(values))
    means = subset_means(values, 99_999)
    assert flip_less_p(means) == pytest.approx(less, abs=0.005)
    assert two_sided_p(means) == pytest.approx(2 * min(less, greater), abs=0.005)


@pytest.mark.parametrize(("gains", "losses"), [(1, 4), (3, 12), (0, 6), (20, 31)])
def test_turning_signs_of_changed_answers_is_mcnemar_s_test(gains, losses):
    values = np.array([1.0] * gains + [-1.0] * losses + [0.0] * 60)
    p = two_sided_p(subset_means(values, 99_999))
    assert p == pytest.approx(stats.binomtest(gains, gains + losses).pvalue, abs=0.006)


@given(
    values=st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=1, max_size=40),
    zeros=st.integers(0, 40),
    shift=st.integers(-50, 50).map(lambda i: i / 100),
    confidence=COUNTS["confidence"],
    tolerance=st.floats(0, 0.5),
)
@settings(deadline=None, max_examples=100)
def test_an_interval_of_differences_is_the_test_inverted(
    values, zeros, shift, confidence, tolerance
):
    changes = np.array([v + shift for v in values] + [0.0] * zeros)
    test = paired_test(changes, False, draws=999)
    interval = test.interval(confidence)
    if interval is None:
        few = 2.0 / (test.means.size + 1) >= round(1 - confidence, 12)
        assert few or np.ptp(changes) < 1e-9
        return
    low, high = interval
    assert low < high
    assert (low > 0 or high < 0) == (test.two_sided_p() < round(1 - confidence, 12))
    if abs(high + tolerance) > 1e-9:
        assert (high < -tolerance) == (test.less_p(-tolerance) < round((1 - confidence) / 2, 12))


def test_no_interval_has_no_width():
    assert paired_test(np.zeros(200), False).interval(0.95) is None
    assert paired_test(np.zeros(200), False).two_sided_p() == 1.0
    assert paired_test(np.full(200, -0.1), False).interval(0.95) is None
    assert paired_test(np.array([0.3]), False).two_sided_p() == 1.0
    assert paired_test(np.array([0.3]), False).interval(0.95) is None


@pytest.mark.parametrize("n", [12, 40, 400])
def test_order_and_direction_change_nothing(n):
    values = np.random.default_rng(n).normal(0.1, 1, n)
    test, shuffled = (paired_test(v, False) for v in (values, values[::-1]))
    assert test.interval(0.95) == shuffled.interval(0.95)
    low, high = test.interval(0.95)
    turned = paired_test(-values, False)
    assert turned.interval(0.95) == (-high, -low)
    assert turned.two_sided_p() == test.two_sided_p()


def test_an_interval_of_differences_is_near_the_t_interval():
    values = np.random.default_rng(8).normal(0.12, 1, 400)
    expected = stats.ttest_1samp(values, 0)
    test = paired_test(values, False, draws=50_000)
    assert test.two_sided_p() == pytest.approx(expected.pvalue, abs=0.01)
    assert test.interval(0.95) == pytest.approx(tuple(expected.confidence_interval()), abs=0.005)


def test_an_interval_of_ten_differences_covers_as_often_as_it_says():
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(600):
        low, high = paired_test(rng.normal(0, 1, 10), False, draws=999).interval(0.95)
        covered += low <= 0 <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.03)


# --- Holm ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    # Marcus, Peritz, Gabriel 1976: the largest Bonferroni p of all sets of tests with this one.
    others = range(len(p_values))
    sets = [s for size in others for s in combinations(others, size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in others
    ]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


# --- power --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "psi", "drop"), [*product((20, 60), (0.1, 0.4), (0.0, 0.08)), (30, 1.0, 0.4)]
)
def test_power_is_the_sum_over_every_outcome(n, psi, drop):
    loss, gain = (psi + drop) / 2, (psi - drop) / 2
    expected = 0.0
    for losses in range(n + 1):
        for gains in range(n + 1 - losses):
            if stats.binom.cdf(gains, gains + losses, 0.5) <= 0.05:
                expected += stats.multinomial.pmf(
                    [gains, losses, n - gains - losses], n, [gain, loss, 1 - psi]
                )
    assert mcnemar_power(n, psi, drop) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "psi"), [(10, 0.5), (100, 0.05), (1000, 0.15), (5000, 0.4)])
def test_the_exact_test_never_exceeds_its_level(n, psi):
    assert mcnemar_power(n, psi, 0.0) <= 0.05
    assert mcnemar_power(n, psi, 0.0, two_sided=True) <= 0.025


def test_power_refuses_what_cannot_be():
    with pytest.raises(ValueError):
        mcnemar_power(100, 0.1, 0.2)


@pytest.mark.parametrize(("n", "psi"), [(500, 0.1), (1000, 0.15), (3000, 0.3)])
def test_the_detectable_difference_has_the_power_asked_for(n, psi):
    d = detectable_difference(n, psi)
    # The exact test is conservative, the formula is not: a few points less.
    assert mcnemar_power(n, psi, d, two_sided=True) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 15])
@pytest.mark.parametrize(("psi", "d"), [(0.1, 0.02), (0.4, 0.05), (0.03, 0.02)])
def test_the_needed_pairs_have_the_power_asked_for(alpha, psi, d):
    n = needed_pairs(psi, d, alpha)
    assert n is not None
    assert detectable_difference(n, psi, alpha) <= d < detectable_difference(n - 1, psi, alpha)
    # The exact test is a little weaker than the normal approximation.
    assert mcnemar_power(n, psi, d, alpha, two_sided=True) == pytest.approx(0.8, abs=0.04)
    many = needed_pairs(psi, d, alpha, binary=False)
    assert detectable_difference(many, psi, alpha, binary=False) <= d
    assert detectable_difference(many - 1, psi, alpha, binary=False) > d


def test_needed_pairs_of_hardly_any_change():
    assert needed_pairs(0.0, 0.02) is None
    assert needed_pairs(0.001, 0.02) == needed_pairs(0.02, 0.02)


def test_the_detectable_difference_by_hand():
    # (1.959964 + 0.841621) * 2 / sqrt(100)
    assert detectable_difference(100, 4.0, binary=False) == pytest.approx(0.560317, abs=1e-6)
    assert math.isnan(detectable_difference(0, 0.1))
    assert math.isnan(detectable_difference(100, 0.0))
    assert math.isnan(detectable_difference(5, 0.01))


# --- unpaired -----------------------------------------------------------------------------------


def _independent_score_by_brute_force(counts: tuple[int, int, int, int], d: float) -> float:
    first, n_first, second, n_second = counts

    def loss(p: float) -> float:
        cells = (p, 1 - p, p + d, 1 - p - d)
        found = (first, n_first - first, second, n_second - second)
        return -sum(k * math.log(c) for k, c in zip(found, cells, strict=True))

    bounds = (max(0.0, -d) + 1e-9, min(1.0, 1.0 - d) - 1e-9)
    p = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    variance = p * (1 - p) / n_first + (p + d) * (1 - p - d) / n_second
    return (second / n_second - first / n_first - d) / math.sqrt(variance)


def test_the_unpaired_interval_holds_what_the_score_test_does_not_reject():
    counts = (60, 100, 90, 120)
    low, high, p = proportion_difference(*counts)
    z = stats.norm.isf(0.025)
    assert _independent_score_by_brute_force(counts, low) == pytest.approx(z, abs=1e-5)
    assert _independent_score_by_brute_force(counts, high) == pytest.approx(-z, abs=1e-5)
    # The score test of equal proportions squares to Pearson's chi-square.
    chi2 = stats.chi2_contingency([[60, 40], [90, 30]], correction=False).statistic
    assert p == pytest.approx(stats.chi2.sf(chi2, 1), rel=1e-6)


@given(
    sizes=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    confidence=COUNTS["confidence"],
)
@settings(deadline=None, max_examples=150)
def test_an_unpaired_interval_excludes_zero_exactly_where_p_is_below_alpha(
    sizes, shares, confidence
):
    first, second = (round(n * share) for n, share in zip(sizes, shares, strict=True))
    low, high, p = proportion_difference(first, sizes[0], second, sizes[1], confidence)
    assert (low > 0 or high < 0) == (p < round(1 - confidence, 12))
    assert -1 <= low <= second / sizes[1] - first / sizes[0] <= high <= 1


def test_unpaired_runs_that_are_all_right_do_not_differ():
    assert proportion_difference(50, 50, 80, 80)[2] == 1.0
    assert proportion_difference(0, 50, 0, 80)[2] == 1.0


def test_the_interval_of_a_mean_is_the_normal_one():
    for confidence in (0.5, 0.95, 0.99):
        expected = stats.norm.interval(confidence, loc=2.0, scale=0.3)
        assert mean_interval(2.0, 0.3, confidence) == pytest.approx(expected, rel=1e-12)


def test_the_difference_of_means_by_hand():
    low, high, p = mean_difference(1.0, 0.3, 2.0, 0.4)
    assert (low, high) == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5), abs=1e-6)
    assert p == pytest.approx(2 * stats.norm.sf(2.0))
    for second in (1.0, 2.0):
        with pytest.raises(ValueError):
            mean_difference(1.0, 0.0, second, 0.0)


def test_unchanged_items_of_a_graded_metric_are_no_proof():
    """One item in 50 loses a whole point: the true drop is the tolerance."""
    rng = np.random.default_rng(5)
    shown = [
        paired_test(-1.0 * (rng.random(100) < 0.02), False, draws=999).shown_p(0.02) <= 0.05
        for _ in range(300)
    ]
    assert np.mean(shown) <= 0.05
    same = paired_test(np.zeros(90), False)
    assert same.shown_p(0.02) == pytest.approx(0.98**90)
    assert same.shown_p(0.02) == pytest.approx(paired_test(np.zeros(90), True).shown_p(0.02))
    unbounded = paired_test(np.zeros(90), False, unit=False)
    assert unbounded.shown_p(0.02) == 1.0
