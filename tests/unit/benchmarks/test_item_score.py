"""The item score keeps its level on simulated changes, where a test of single items does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.item_score import DESIGNS, draw, rates
from gks_eval.evidence.stats.item_score import item_score

REPEATS = 600
# Of 600 draws of 5%: more than 5% + 2.7 standard errors with a probability of 0.5%.
ERROR = 2.7 * (0.05 * 0.95 / REPEATS) ** 0.5


@pytest.mark.parametrize("name", DESIGNS)
def test_alarms_and_coverage_hold(name: str) -> None:
    found = rates(DESIGNS[name], REPEATS, seed=3, linked=True)
    # 5.8% and 92% were the worst of a wider set of designs.
    assert found.alarm <= 0.058 + ERROR
    assert found.covers >= 0.935 - ERROR
    assert found.shown <= 0.075 + ERROR


def test_with_few_changes_the_normal_score_alone_would_pass_too_many_drops() -> None:
    design = DESIGNS["1 task of 300 items, 2% change"]
    rng = np.random.default_rng(3)
    shown = {"normal": 0, "bound": 0}
    for _ in range(REPEATS):
        score = item_score(draw(design, rng, drop=0.02), [1.0])
        shown["normal"] += norm.sf(score.z(0.02)) <= 0.05
        shown["bound"] += score.shown_p(0.02) <= 0.05
    assert shown["normal"] / REPEATS > 0.05 + ERROR
    assert shown["bound"] / REPEATS <= 0.05 + ERROR


def test_without_the_clusters_linked_items_raise_false_alarms() -> None:
    design = DESIGNS["400 questions in 3 languages, r = 0.6"]
    ignored, used = (rates(design, REPEATS, 3, linked) for linked in (False, True))
    assert ignored.alarm > 0.09 > used.alarm
    assert ignored.covers < 0.85
    # 1 + (3 - 1) * 0.6
    assert used.effect == pytest.approx(2.2, abs=0.05)


def test_linked_changes_have_the_correlation_asked_for() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(DESIGNS["400 questions in 3 languages, r = 0.3"], rng) for _ in range(100)]
    first, second, _ = (np.concatenate(rows) for rows in zip(*drawn, strict=True))
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.3, abs=0.02)
    assert np.mean(first != 0) == pytest.approx(0.15, abs=0.01)
