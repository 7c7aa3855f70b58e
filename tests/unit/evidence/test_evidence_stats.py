"""Every statistic against scipy, statsmodels, a likelihood maximised by brute force, or by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from gks_eval.evidence.stats.bootstrap import (
    bootstrap_interval,
    bootstrap_p,
    group_means,
    resampled_means,
)
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.mcnemar import mcnemar_exact
from gks_eval.evidence.stats.paired_score import paired_interval, paired_score, worse_by_more_p
from gks_eval.evidence.stats.power import detectable_difference, mcnemar_power
from gks_eval.evidence.stats.unpaired import mean_difference, proportion_difference
from gks_eval.evidence.stats.wilson import wilson_interval

# --- Wilson -------------------------------------------------------------------------------------


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_is_that_of_statsmodels(n, share, confidence):
    k = round(n * share)
    low, high = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(k, n, confidence) == pytest.approx((low, high), abs=1e-9)


def test_wilson_by_hand():
    # 8 of 10, z = 1.959964: centre (0.8 + 0.192073) / 1.384146, half-width from the formula.
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(0, 100)[0] == 0.0
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


# --- McNemar ------------------------------------------------------------------------------------


@given(gains=st.integers(0, 300), losses=st.integers(0, 300))
def test_mcnemar_is_that_of_statsmodels(gains, losses):
    expected = mcnemar([[5, gains], [losses, 5]], exact=True).pvalue
    expected = 1.0 if math.isnan(expected) else min(1.0, expected)
    assert mcnemar_exact(gains, losses) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_mcnemar_by_hand():
    # 1 gain, 7 losses: two-sided 2 * (C(8,0) + C(8,1)) / 2^8 = 18 / 256, one-sided 9 / 256.
    assert mcnemar_exact(1, 7) == pytest.approx(18 / 256)
    assert mcnemar_exact(1, 7, "less") == pytest.approx(9 / 256)
    assert mcnemar_exact(1, 7, "greater") == pytest.approx(255 / 256)
    assert mcnemar_exact(0, 0) == 1.0


# --- Tango's interval ---------------------------------------------------------------------------


def _score_by_brute_force(gains: int, losses: int, n: int, d: float) -> float:
    """The same statistic with the nuisance probability found by maximising the likelihood."""
    low, high = max(0.0, -d), (1.0 - d) / 2.0

    def loss(q: float) -> float:
        cells = (q + d, q, 1.0 - 2.0 * q - d)
        counts = (gains, losses, n - gains - losses)
        return -sum(k * math.log(max(c, 1e-300)) for k, c in zip(counts, cells, strict=True) if k)

    q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (gains - losses - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(("gains", "losses", "n"), [(3, 9, 40), (20, 5, 100), (1, 1, 15)])
@pytest.mark.parametrize("d", [-0.4, -0.1, 0.05, 0.3])
def test_the_score_uses_the_constrained_maximum(gains, losses, n, d):
    expected = _score_by_brute_force(gains, losses, n, d)
    assert paired_score(gains, losses, n, d) == pytest.approx(expected, rel=1e-4)


@given(gains=st.integers(0, 50), losses=st.integers(0, 50))
def test_the_score_at_zero_is_mcnemar_s(gains, losses):
    expected = (gains - losses) / math.sqrt(gains + losses) if gains + losses else 0.0
    assert paired_score(gains, losses, 200, 0.0) == pytest.approx(expected)


@settings(deadline=None)
@given(gains=st.integers(0, 40), losses=st.integers(0, 40), both=st.integers(0, 200))
def test_the_interval_holds_what_the_test_does_not_reject(gains, losses, both):
    n = gains + losses + both
    if n == 0:
        return
    low, high = paired_interval(gains, losses, n)
    estimate = (gains - losses) / n
    assert -1.0 <= low <= estimate + 1e-12
    assert estimate - 1e-12 <= high <= 1.0
    z = stats.norm.isf(0.025)
    for limit, sign in ((low, 1), (high, -1)):
        if abs(limit) < 1 - 1e-6:
            assert paired_score(gains, losses, n, limit) == pytest.approx(sign * z, abs=1e-5)


def test_the_interval_without_discordant_items_by_hand():
    # Z(d)^2 = n d / (1 - d) for g = l = 0, so the limit is z^2 / (n + z^2).
    z2 = stats.norm.isf(0.025) ** 2
    assert paired_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-6)
    assert paired_interval(10, 0, 10)[1] == 1.0
    assert paired_interval(0, 10, 10)[0] == -1.0
    with pytest.raises(ValueError):
        paired_interval(6, 6, 10)


def test_the_interval_is_swapped_with_the_runs():
    low, high = paired_interval(4, 11, 60)
    assert paired_interval(11, 4, 60) == pytest.approx((-high, -low), abs=1e-9)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(11)
    n, p_gain, p_loss = 80, 0.08, 0.15
    draws = rng.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], size=2_000)
    cache = {}
    covered = 0
    for gains, losses, _ in draws:
        key = (int(gains), int(losses))
        if key not in cache:
            cache[key] = paired_interval(*key, n)
        covered += cache[key][0] <= p_gain - p_loss <= cache[key][1]
    assert covered / 2_000 == pytest.approx(0.95, abs=0.015)


def test_the_one_sided_test_against_a_tolerance():
    assert worse_by_more_p(10, 40, 200, 0.0) == pytest.approx(stats.norm.cdf(-30 / math.sqrt(50)))
    assert worse_by_more_p(10, 40, 200, 0.15) == pytest.approx(0.5)
    p = [worse_by_more_p(10, 40, 200, t) for t in (0.0, 0.05, 0.1, 0.2)]
    assert p == sorted(p)
    assert worse_by_more_p(0, 0, 200, 0.0) == 0.5


# --- Holm ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


# --- bootstrap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["signs", "continuous"])
def test_the_bootstrap_is_that_of_scipy(kind):
    rng = np.random.default_rng(3)
    values = rng.integers(-1, 2, 150).astype(float) if kind == "signs" else rng.normal(1, 2, 150)
    ours = bootstrap_interval(resampled_means(values, np.random.default_rng(1), 20_000))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    spread = values.std() / math.sqrt(values.size)
    step = 1 / values.size if kind == "signs" else 0.0  # means of signs lie on a grid
    assert ours == pytest.approx(tuple(theirs), abs=0.08 * spread + step)


def test_a_group_s_bootstrap_is_scipy_s_over_several_samples():
    rng = np.random.default_rng(4)
    tasks = [rng.integers(-1, 2, n).astype(float) for n in (40, 90, 300)]
    weights = [0.2, 0.3, 0.5]

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return sum(w * s.mean(axis=axis) for w, s in zip(weights, samples, strict=True))

    average, drawn = group_means(tasks, weights, np.random.default_rng(5), 20_000)
    assert average == pytest.approx(statistic(*tasks))
    theirs = stats.bootstrap(
        tasks,
        statistic,
        n_resamples=20_000,
        method="percentile",
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(6),
    )
    assert drawn.std() == pytest.approx(theirs.standard_error, rel=0.03)
    assert bootstrap_interval(drawn) == pytest.approx(
        tuple(theirs.confidence_interval), abs=0.08 * drawn.std()
    )


def test_the_spread_of_a_group_is_the_formula_s():
    tasks = [np.array([0.0, 1.0] * 50), np.array([0.0, 0.0, 1.0] * 100)]
    weights = [100 / 400, 300 / 400]
    expected = math.sqrt(sum(w * w * t.var() / t.size for w, t in zip(weights, tasks, strict=True)))
    drawn = group_means(tasks, weights, np.random.default_rng(0), 50_000)[1]
    assert drawn.std() == pytest.approx(expected, rel=0.02)


def test_bootstrap_p_by_hand():
    drawn = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    # Deviations from 0.3: -0.2, -0.1, 0, 0.1, 0.2; two of five reach 0.2 in size.
    assert bootstrap_p(0.2, drawn + (0.2 - 0.3)) == pytest.approx(3 / 6)
    # "Below -0.05": deviations at most -0.2 + 0.05 = -0.15: one of five.
    assert bootstrap_p(-0.2, drawn + (-0.2 - 0.3), margin=0.05) == pytest.approx(2 / 6)
    assert bootstrap_p(0.0, np.zeros(99)) == 1.0
    assert bootstrap_p(0.0, np.zeros(99), margin=0.0) == 1.0


@pytest.mark.parametrize("losses", [1, 2, 4, 5, 9])
def test_bootstrap_p_is_no_surer_than_a_test_of_signs(losses: int):
    values = np.array([-1.0] * losses + [0.0] * (60 - losses))
    estimate, drawn = group_means([values], [1.0], np.random.default_rng(0))
    alone = bootstrap_p(estimate, drawn)
    for margin, way in ((None, "two-sided"), (0.0, "less")):
        found = bootstrap_p(estimate, drawn, margin, changed=losses)
        exact = stats.binomtest(0, losses, alternative=way).pvalue
        assert found == pytest.approx(max(exact, bootstrap_p(estimate, drawn, margin)))
        assert found >= exact - 1e-12
    assert losses == 1 or alone < stats.binomtest(0, losses).pvalue + 1e-12
    # A tolerance is another question, and no change is no evidence.
    assert bootstrap_p(estimate, drawn, 0.01, changed=losses) == bootstrap_p(estimate, drawn, 0.01)
    assert bootstrap_p(0.0, np.zeros(99), changed=0) == 1.0


def test_bootstrap_p_is_near_the_t_test_s():
    values = np.random.default_rng(8).normal(0.12, 1, 400)
    drawn = resampled_means(values, np.random.default_rng(9), 50_000)
    assert bootstrap_p(values.mean(), drawn) == pytest.approx(
        stats.ttest_1samp(values, 0).pvalue, abs=0.01
    )


def test_a_bootstrap_of_nothing_is_refused():
    with pytest.raises(ValueError):
        resampled_means([], np.random.default_rng(0), 10)


# --- power --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "psi", "drop"), [*product((20, 60), (0.1, 0.4), (0.0, 0.08)), (30, 1.0, 0.4)]
)
def test_power_is_the_sum_over_every_outcome(n, psi, drop):
    loss, gain = (psi + drop) / 2, (psi - drop) / 2
    expected = 0.0
    for losses in range(n + 1):
        for gains in range(n + 1 - losses):
            if mcnemar_exact(gains, losses, "less") <= 0.05:
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


def test_the_detectable_difference_by_hand():
    # (1.959964 + 0.841621) * 2 / sqrt(100)
    assert detectable_difference(100, 4.0, binary=False) == pytest.approx(0.560317, abs=1e-6)
    assert math.isnan(detectable_difference(0, 0.1))
    assert math.isnan(detectable_difference(100, 0.0))
    assert math.isnan(detectable_difference(5, 0.01))


# --- unpaired -----------------------------------------------------------------------------------


def test_the_unpaired_interval_is_newcombe_s_from_wilson_s():
    low, high, p = proportion_difference(60, 100, 90, 120)
    p1, p2 = 0.6, 0.75
    (l1, u1), (l2, u2) = wilson_interval(60, 100), wilson_interval(90, 120)
    assert low == pytest.approx(p2 - p1 - math.hypot(p2 - l2, u1 - p1), abs=1e-9)
    assert high == pytest.approx(p2 - p1 + math.hypot(u2 - p2, p1 - l1), abs=1e-9)
    # The score test of equal proportions squares to Pearson's chi-square.
    chi2 = stats.chi2_contingency([[60, 40], [90, 30]], correction=False).statistic
    assert p == pytest.approx(stats.chi2.sf(chi2, 1), rel=1e-6)


def test_unpaired_runs_that_are_all_right_do_not_differ():
    assert proportion_difference(50, 50, 80, 80)[2] == 1.0
    assert proportion_difference(0, 50, 0, 80)[2] == 1.0


def test_the_difference_of_means_by_hand():
    low, high, p = mean_difference(1.0, 0.3, 2.0, 0.4)
    assert (low, high) == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5), abs=1e-6)
    assert p == pytest.approx(2 * stats.norm.sf(2.0))
    assert mean_difference(1.0, 0.0, 1.0, 0.0)[2] == 1.0
    assert mean_difference(1.0, 0.0, 2.0, 0.0)[2] == 0.0
