"""Gates with looks: bounds against a normal integral, decisions by hand, rates by simulation."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from benchmarks.early_stopping import Case, counted, rates
from gks_eval.errors import ResultsError
from gks_eval.evidence.gate import gate as judge_all
from gks_eval.evidence.looks import Reading, Rules, reading, standings
from gks_eval.evidence.looks_file import LooksFile, read_looks
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.reading_order import ReadingOrder
from gks_eval.evidence.report.build import build_page
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.samples import Item
from gks_eval.evidence.staged import StagedGate
from gks_eval.evidence.stats.item_score import item_score
from gks_eval.evidence.stats.spending import LOOKS, bounds, spent
from gks_eval.evidence.tables.gate_text import headline
from gks_eval.evidence.tables.looks_text import looks_tables


def levels(shares, alpha=0.05):
    return tuple(b - a for a, b in pairwise([0.0, *(spent(t, alpha) for t in shares)]))


def test_the_bounds_are_those_of_a_level_spent_as_its_square():
    found = bounds(LOOKS, levels(LOOKS))
    assert found == pytest.approx((3.66, 3.35, 2.94, 2.59, 2.27, 2.04, 1.77), abs=0.006)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7, 0.2])
@pytest.mark.parametrize("shares", [(1.0,), (0.2, 1.0), (0.1, 0.35, 1.0)])
def test_a_test_with_these_bounds_has_the_level_by_a_normal_integral(shares, alpha):
    """Scores at shares s < t of a Brownian motion have correlation sqrt(s / t)."""
    t = np.array(shares)
    covariance = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    found = np.array(bounds(shares, levels(shares, alpha)))
    inside = multivariate_normal.cdf(found, cov=covariance, abseps=1e-7, rng=0)
    assert 1.0 - inside == pytest.approx(alpha, abs=2e-5)
    assert found[0] == pytest.approx(norm.isf(alpha * t[0] ** 2))


def test_bounds_refuse_looks_in_another_order():
    with pytest.raises(ValueError, match="increasing"):
        bounds((0.5, 0.2), (0.01, 0.01))


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
@pytest.mark.parametrize(("gains", "losses"), [(0, 0), (0, 5), (3, 1), (10, 30), (40, 12)])
def test_the_benchmark_s_counts_give_the_gate_s_readings(gains, losses, tolerance):
    values = np.repeat([1.0, -1.0, 0.0], [gains, losses, 500 - gains - losses])
    expected = reading(item_score([values], [1.0]), tolerance)
    found = counted(gains, losses, 500, tolerance)
    numbers = expected.model_dump(exclude={"tasks"})
    assert found.model_dump(exclude={"tasks"}) == pytest.approx(numbers, abs=1e-12)


def at(z, n=100, changed=50, p=0.5, p_shown=0.5):
    return Reading(tasks=(), n=n, clusters=n, changed=changed, z=z, p=p, p_shown=p_shown)


def states(shares, looks, rules, holm=True):
    return [(one.state, one.look) for one in standings(shares, looks, rules, holm)]


def test_a_regression_stops_at_the_first_look_beyond_its_bound():
    shares, rules = LOOKS[:3], [Rules(0.05)]
    assert states(shares, [[at(-3.6)], [at(-3.3)], [at(-2.9)]], rules) == [("open", 2)]
    assert states(shares, [[at(-3.6)], [at(-3.4)], [at(0.0)]], rules) == [("regression", 1)]
    assert states(shares, [[at(3.6)], [at(3.4)], [at(0.0)]], rules) == [("shown", 1)]


def test_a_look_with_few_changed_clusters_leaves_its_part_to_the_next():
    shares = LOOKS[:2]
    (late,) = standings(shares, [[at(-3.0, changed=9)], [at(0.0)]], [Rules(0.05)])
    assert late.lower == pytest.approx(-norm.isf(0.05 * 0.10**2))  # all of what 10% may spend
    (both,) = standings(shares, [[at(0.0)], [at(0.0)]], [Rules(0.05)])
    assert both.lower == pytest.approx(-3.352, abs=1e-3)
    # At the end nothing is left for later, and the exact test judges.
    end = (*shares, 1.0)
    few = [[at(0.0, changed=2)]] * 2
    assert states(end, [*few, [at(-1.0, changed=5, p=0.049)]], [Rules(0.05)]) == [("regression", 2)]
    assert states(end, [*few, [at(-1.0, changed=5, p=0.051)]], [Rules(0.05)]) == [("open", 2)]


def test_with_few_changed_clusters_a_pass_is_judged_by_the_look_s_part_of_the_level():
    part = 0.05 * (0.35**2 - 0.20**2)
    for p_shown, state in ((0.99 * part, "shown"), (1.01 * part, "open")):
        looks = [[at(0.0, changed=0, p_shown=0.5)]] * 3 + [[at(0.0, changed=0, p_shown=p_shown)]]
        assert states(LOOKS[:4], looks, [Rules(0.05)]) == [(state, 3)]


def test_holm_tests_the_others_at_a_larger_share_after_a_regression():
    worse = -bounds((0.05,), (0.05 * 0.05**2 / 2,))[0] - 0.01
    between = -norm.isf(0.05 * 0.05**2) - 0.01  # beyond the bound of alpha, not of alpha / 2
    two = [Rules(0.05)] * 2
    assert states((0.05,), [[at(between), at(0.0)]], two) == [("open", 0)] * 2
    assert states((0.05,), [[at(between), at(worse)]], two) == [("regression", 0)] * 2
    assert states((0.05,), [[at(between), at(0.0)]], two, holm=False)[0][0] == "regression"


def test_limits_of_a_check():
    few, floor = Rules(0.05, min_pairs=101), Rules(0.05, to_the_end=True)
    assert states((0.05,), [[at(-9.0)]], [few]) == [("open", 0)]
    assert states((0.05,), [[at(9.0)]], [floor]) == [("open", 0)]
    assert states((0.05, 1.0), [[at(9.0)], [at(9.0)]], [floor]) == [("shown", 1)]
    assert states((0.05,), [[None]], [Rules(0.05)]) == [("open", 0)]


@pytest.mark.parametrize(
    "case",
    [
        Case(1000, 4, 0.05),
        Case(1000, 4, 0.15),
        Case(10_000, 4, 0.05),
        Case(1000, 1, 0.05, 0.02, 0.02),
    ],
    ids=str,
)
def test_false_alarms_over_several_tasks_stay_within_six_percent(case):
    found = rates(case, 600 if case.tasks > 1 else 1500, seed=3)
    assert found.regression <= 0.06
    assert found.shown <= 0.06


def test_clear_cases_read_few_items_and_lose_little_power():
    worse = rates(Case(10_000, 4, 0.06, drop=0.05), 40, seed=4)
    assert worse.regression == 1.0
    assert worse.read < 0.12
    same = rates(Case(10_000, 1, 0.05, 0.01), 150, seed=5)
    assert 0.35 < same.read < 0.55
    assert same.shown_at_end - same.shown <= 0.05
    near = rates(Case(1000, 1, 0.05, drop=0.02), 400, seed=6)
    assert near.regression > 0.5
    assert near.regression_at_end - near.regression <= 0.05


def item(number, cluster="", doc=None):
    return Item(number, (doc or f"doc {number}", 0), "", "", {}, {}, cluster)


def test_the_order_is_fixed_shuffled_and_keeps_clusters_whole():
    alone = [item(number) for number in range(100)]
    order = ReadingOrder({"a": alone})
    sizes = [len(order.first(share)["a"]) for share in LOOKS]
    assert sizes == [5, 10, 20, 35, 55, 75, 100]
    first = order.first(0.2)["a"]
    assert first == ReadingOrder({"a": alone[::-1]}).first(0.2)["a"]
    assert first != list(range(20))
    assert set(order.first(0.1)["a"]) < set(first)
    # Translations of one question, of which one language lacks some.
    langs = {"en": range(60), "de": range(60), "fr": range(0, 60, 3)}
    linked = ReadingOrder({t: [item(n, f"q{n}") for n in ids] for t, ids in langs.items()})
    found = linked.first(0.35)
    assert found["en"] == found["de"]
    assert len(found["en"]) == 21
    assert set(found["fr"]) == {n for n in found["en"] if n % 3 == 0}
    # Copies of a document are read together.
    copies = [item(n, doc=f"doc {n // 2}") for n in range(40)]
    read = ReadingOrder({"a": copies}).first(0.1)["a"]
    assert len(read) == 4
    assert {n // 2 for n in read} == {n // 2 for n in read if n % 2}


def test_each_task_has_an_item_at_every_look():
    few = {"a": [item(n, f"q{n}") for n in range(50)], "b": [item(0, "q7")]}
    assert len(ReadingOrder(few).first(0.02)["b"]) == 1


def scores(n, lost=(), start=0):
    """Scores that are 1 except for `lost` and every third item."""
    return [float(i % 3 != 0 and i not in lost) for i in range(start, start + n)]


def candidate_of(factory, folder, wanted, values, **options):
    """The candidate's results of the wanted items alone, as the gate's command makes them."""
    rows = {
        task: [factory.sample(i, values[task][i], question=f"{task} {i}?") for i in numbers]
        for task, numbers in wanted.items()
    }
    path = factory.write_run(folder, rows, **options)
    content = json.loads(path.read_text())
    for task, counts in content["n-samples"].items():
        counts["original"] = len(values[task])
    path.write_text(json.dumps(content))
    return one_run(str(folder))


@pytest.fixture
def staged(factory, tmp_path):
    """Run a gate over two tasks and their average, and return it with its baseline."""

    def run(values, policy, base=None, groups=("both",)):
        base = base or {task: scores(len(found)) for task, found in values.items()}
        both = {"both": (list(values), False)}
        everything = {task: range(len(found)) for task, found in base.items()}
        first = candidate_of(factory, tmp_path / "old", everything, base, groups=both)
        gate = StagedGate(first, list(values), groups, GatePolicy(**policy), "arrow")
        while gate.verdict is None:
            folder = tmp_path / f"look-{len(gate.looks)}"
            gate.take(candidate_of(factory, folder, gate.wanted(), values, groups=both))
        return gate, first

    return run


def test_an_unchanged_candidate_passes_before_the_end(staged):
    gate, _ = staged({"a": scores(1000), "b": scores(1000)}, {"max_drop": 0.03})
    assert (gate.verdict.status, gate.verdict.exit_code) == ("pass", 0)
    # (1 - 0.03)^200 is above the part of the level at 20%, (1 - 0.03)^350 below that at 35%; the
    # average has twice the items.
    assert [look.share for look in gate.looks] == list(LOOKS[:4])
    assert gate.looks[-1].items == {"a": 350, "b": 350}
    found = {check.name: (check.state, check.n) for check in gate.looks[-1].checks}
    assert found == {"a": ("shown", 350), "b": ("shown", 350), "both": ("shown", 700)}
    assert "may miss" not in headline(gate.verdict)
    assert gate.verdict.notes == ["700 of 2,000 items were read in 4 looks"]


def test_a_planted_regression_stops_early_and_says_where(staged, tmp_path):
    lost = {i for i in range(1000) if i % 3 and i % 7 == 0}
    gate, first = staged({"a": scores(1000, lost), "b": scores(1000)}, {})
    assert (gate.verdict.status, gate.verdict.exit_code) == ("regression", 1)
    assert gate.looks[-1].share < 0.5
    outcomes = {outcome.check.name: outcome for outcome in gate.verdict.outcomes}
    assert outcomes["a"].status == "regression"
    assert "z = " in outcomes["a"].reasons[0]
    assert outcomes["b"].status == "unjudged"
    assert "when the gate stopped" in outcomes["b"].reasons[0]
    last = gate.looks[-1].checks[0]
    assert last.z <= last.lower
    assert LooksFile.model_validate_json(gate.to_file().to_json()) == gate.to_file()
    whole, checks = looks_tables(gate.to_file())
    assert whole.rows[-1][3:] == ["2", "0", "1"] or whole.rows[-1][3:] == ["1", "0", "2"]
    assert checks.rows[0][:2] == ["a", "REGRESSION"]
    assert float(checks.rows[0][5]) <= float(checks.rows[0][6])
    (tmp_path / "looks.json").write_text(gate.to_file().to_json())
    page = build_page([first], [tmp_path])
    assert "Looks of the gate" in page
    assert "arrow: verdict regression" in page
    (tmp_path / "looks.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"looks.json .*; delete it or run the gate again"):
        read_looks(tmp_path)


def test_read_to_the_end_it_measures_what_the_gate_measures(staged, tmp_path):
    values = {"a": scores(300, set(range(1, 300, 37))), "b": scores(150)}
    base = {"a": scores(300, set(range(2, 300, 41))), "b": scores(150)}
    gate, first = staged(values, {}, base)
    assert gate.looks[-1].share == 1.0
    assert gate.verdict.status == "pass"
    whole = judge_all(first, one_run(str(tmp_path / f"look-{len(gate.looks) - 1}")), GatePolicy())
    for ours, theirs in zip(gate.verdict.outcomes, whole.outcomes, strict=True):
        one, other = ours.check, theirs.check
        assert (one.name, one.n, one.gains, one.losses) == (
            other.name, other.n, other.gains, other.losses,
        )  # fmt: skip
        assert one.change == pytest.approx(other.change)
    assert "may miss" in headline(gate.verdict)
    shown, _ = staged(values, {"require": "shown"}, base)
    assert shown.verdict.exit_code == 2


def test_a_task_that_passed_is_read_no_further_unless_a_group_needs_it(staged):
    values = {"a": scores(2000), "b": scores(2000, set(range(1, 2000, 50)))}
    base = {"a": scores(2000), "b": scores(2000, set(range(2, 2000, 50)))}
    policy = {"max_drop": 0.02}
    gate, _ = staged(values, policy, base, groups=())
    read = [look.items for look in gate.looks]
    assert read[-1]["a"] < read[-1]["b"]
    assert gate.verdict.status == "pass"


def test_a_floor_is_judged_on_all_items(staged):
    gate, _ = staged(
        {"a": scores(400)}, {"max_drop": 0.2, "tasks": {"a": {"floor": 0.9}}}, groups=()
    )
    assert gate.looks[-1].items == {"a": 400}
    assert gate.verdict.exit_code == 1
    assert "misses the floor" in gate.verdict.outcomes[0].reasons[0]


def test_what_the_baseline_lacks_is_one_sentence(factory, tmp_path):
    folder = tmp_path / "old"
    factory.write_run(folder, {"a": scores(200)}, samples=False)
    bare = one_run(str(folder))
    with pytest.raises(ResultsError, match="no samples of a; evaluate the baseline with"):
        StagedGate(bare, ["a"], [], GatePolicy())
    factory.write_run(tmp_path / "new", {"a": scores(60)})
    run = one_run(str(tmp_path / "new"))
    with pytest.raises(ResultsError, match="no results of aa; did you mean 'a'"):
        StagedGate(run, ["aa"], [], GatePolicy())
    with pytest.raises(ResultsError, match="60 items of a, and 100 pairs are needed"):
        StagedGate(run, ["a"], [], GatePolicy())
    gate = StagedGate(run, ["a"], [], GatePolicy(min_pairs=20))
    gate.check_tasks({"a": "1.0"}, {"a": 60})
    with pytest.raises(ResultsError, match=r"version 1.0 of a, and version 2 is installed"):
        gate.check_tasks({"a": "2"}, {"a": 60})
    with pytest.raises(ResultsError, match="split of 60 items of a, and 61 are"):
        gate.check_tasks({"a": "1.0"}, {"a": 61})


def test_another_prompt_stops_the_gate_at_its_first_look(factory, tmp_path):
    factory.write_run(tmp_path / "old", {"a": scores(200)})
    gate = StagedGate(one_run(str(tmp_path / "old")), ["a"], [], GatePolicy())
    rows = [factory.sample(i, 1.0, prompt="Other?") for i in gate.wanted()["a"]]
    path = factory.write_run(tmp_path / "new", {"a": rows})
    path.write_text(path.read_text().replace('"original": 10', '"original": 200'))
    verdict = gate.take(one_run(str(tmp_path / "new")))
    assert verdict.exit_code == 2
    assert verdict.outcomes[0].reasons == ["other prompts in 10 of 10 pairs"]
