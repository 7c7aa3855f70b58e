"""The gate: a pure verdict, its size and power by simulation, never a silent pass."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from gks_eval.errors import ConfigError
from gks_eval.evidence.compare import compare
from gks_eval.evidence.gate import gate, measure_checks
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.stats.item_score import item_score
from gks_eval.evidence.stats.paired_test import CountTest, paired_test
from gks_eval.evidence.stats.power import mcnemar_power, pairs_to_show
from gks_eval.evidence.tables.gate_text import headline, to_junit, verdict_table
from gks_eval.evidence.tables.terminal import print_tables, render
from gks_eval.evidence.verdict import Check, Verdict, judge, unjudgeable
from gks_eval.util.yaml import load_typed, parse_typed


def _check(p: float | None = 0.5, n: int = 1000, **changes: object) -> Check:
    facts: dict[str, object] = {
        "kind": "task",
        "name": "a",
        "metric": "acc,none",
        "limits": GatePolicy().limits("task", "a"),
        "baseline": 0.7,
        "candidate": 0.7,
        "higher_is_better": True,
        "binary": True,
        "change": 0.0,
        "n": n,
        "p": p,
    }
    return Check.model_validate(facts | changes)


# --- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checks", "status", "code"),
    [
        ([_check()], "pass", 0),
        ([_check(0.05)], "regression", 1),
        ([_check(0.0500001)], "pass", 0),
        ([_check(n=99)], "unjudged", 2),
        ([_check(n=100)], "pass", 0),
        ([_check(1e-9, n=99)], "unjudged", 2),
        ([_check(None)], "unjudged", 2),
        ([_check(1e-9, problem="missing")], "unjudged", 2),
        ([_check(), _check(problem="missing")], "unjudged", 2),
        ([_check(0.001), _check(problem="missing")], "regression", 1),
        ([], "unjudged", 2),
    ],
)
def test_the_verdict_is_a_function_of_the_checks(checks, status, code):
    verdict = judge(checks, GatePolicy())
    assert (verdict.status, verdict.exit_code) == (status, code)


def test_every_failure_says_why():
    verdict = judge([_check(0.001), _check(problem="missing in the candidate")], GatePolicy())
    assert all(outcome.reasons for outcome in verdict.outcomes)
    assert unjudgeable("broken", GatePolicy(), "b", "c").notes[0] == "broken"
    assert judge([], GatePolicy()).notes == ["there was nothing to check"]


def test_holm_spans_all_checks_that_can_be_judged():
    checks = [_check(0.02), _check(0.5), _check(0.001, problem="x")]
    assert [o.p_adjusted for o in judge(checks, GatePolicy()).outcomes] == [0.04, 0.5, None]
    assert judge(checks[:2], GatePolicy()).status == "regression"
    assert judge([_check(0.03), _check(0.5)], GatePolicy()).status == "pass"
    plain = GatePolicy(correction="none")
    assert judge([_check(0.03), _check(0.5)], plain).status == "regression"


def test_a_floor_holds_whatever_the_pairs_say():
    floor = {"limits": Limits(max_drop=0.0, alpha=0.05, min_pairs=100, floor=0.71)}
    assert judge([_check(**floor)], GatePolicy()).status == "regression"
    assert judge([_check(n=3, **floor)], GatePolicy()).status == "regression"
    assert judge([_check(candidate=0.71, **floor)], GatePolicy()).status == "pass"
    lower = judge([_check(candidate=0.72, higher_is_better=False, **floor)], GatePolicy())
    assert lower.status == "regression"
    assert judge([_check(candidate=None, problem="missing", **floor)], GatePolicy()).exit_code == 2


def test_an_own_alpha_is_kept():
    strict = Limits(max_drop=0.0, alpha=0.001, min_pairs=100)
    assert judge([_check(0.01, limits=strict)], GatePolicy()).status == "pass"
    assert judge([_check(0.0009, limits=strict)], GatePolicy()).status == "regression"


# --- what a pass shows ---------------------------------------------------------------------------


def _limits(tolerance: float) -> Limits:
    return Limits(max_drop=tolerance, alpha=0.05, min_pairs=100)


def test_shown_needs_evidence_of_no_regression():
    policy = GatePolicy(require="shown", max_drop=0.02)
    shown, open_, worse = (
        _check(p, p_shown=p_shown, needed=2400, limits=_limits(0.02))
        for p, p_shown in ((0.99, 0.01), (0.8, 0.2), (0.001, 0.999))
    )
    for checks, status in (
        ([shown], "pass"),
        ([shown, open_], "unjudged"),
        ([worse, open_], "regression"),
    ):
        assert judge(checks, policy).status == status
        assert judge(checks, GatePolicy(max_drop=0.02)).status != "unjudged"
    assert judge([shown, open_], policy).outcomes[1].reasons == [
        "neither a drop beyond 0.02 nor its absence is shown (p = 0.2, n = 1,000); about 2,400 "
        "items would be needed"
    ]
    # No Holm: every one of 20 checks must be shown.
    assert judge([shown] * 20, policy).status == "pass"
    nothing = judge([_check(0.99, p_shown=0.01)], GatePolicy(require="shown"))
    assert nothing.outcomes[0].reasons == ["nothing can be shown at a tolerance of 0; set max_drop"]


@pytest.mark.parametrize(
    ("discordance", "tolerance", "often"), [(0.02, 0.02, 99), (0.05, 0.02, 87), (0.15, 0.02, 49)]
)
def test_how_often_an_unchanged_candidate_is_shown_to_pass(discordance, tolerance, often):
    rng = np.random.default_rng(0)
    share = [discordance / 2] * 2
    counts = rng.multinomial(1000, [*share, 1 - discordance], size=4000)
    score = exact = 0
    cache: dict[tuple[int, int], tuple[bool, bool]] = {}
    for gains, losses, _ in counts:
        key = int(gains), int(losses)
        if key not in cache:
            values = np.repeat([1.0, -1.0, 0.0], [*key, 1000 - sum(key)])
            both = item_score([values], [1.0]), CountTest(*key, 1000)
            cache[key] = tuple(test.shown_p(tolerance) <= 0.05 for test in both)
        score += cache[key][0]
        exact += cache[key][1]
    assert score / 40 == pytest.approx(often, abs=2.5)
    # The exact test of a single task is a little weaker.
    assert score / 40 - 6 < exact / 40 <= score / 40 + 0.5
    # The number of items for 80% is where the rate says it is.
    needed = pairs_to_show(discordance, tolerance)
    assert (needed < 1000) == (often > 80)


def test_the_needed_items_show_it_in_80_percent_of_cases():
    rng = np.random.default_rng(1)
    n = pairs_to_show(0.1, 0.02)
    shown = 0
    for gains, losses, rest in rng.multinomial(n, [0.05, 0.05, 0.9], size=1500):
        values = np.repeat([1.0, -1.0, 0.0], [gains, losses, rest])
        shown += item_score([values], [1.0]).shown_p(0.02) <= 0.05
    assert shown / 1500 == pytest.approx(0.8, abs=0.03)
    assert pairs_to_show(0.1, 0.0) is None
    # Nothing changes: 0.98^n <= 0.05
    assert pairs_to_show(0.0, 0.02) == 149


def test_a_pass_says_what_it_may_have_missed():
    checks = [_check(detectable=0.034), _check(detectable=0.01)]
    assert headline(judge(checks, GatePolicy())) == (
        "gate: passed (2 passed), but 2 of 2 may miss a drop of 3.40 points"
    )
    tolerant = [c.model_copy(update={"limits": _limits(0.02)}) for c in checks]
    policy = GatePolicy(max_drop=0.02)
    assert headline(judge(tolerant, policy)) == (
        "gate: passed (2 passed), but 1 of 2 may miss a drop of 3.40 points beyond the tolerance"
    )
    assert headline(judge(tolerant[1:], policy)) == "gate: passed (1 passed)"
    blind = judge([_check(detectable=None), *checks], GatePolicy())
    assert headline(blind) == "gate: passed (3 passed), but 3 of 3 may miss any drop"
    assert verdict_table(blind).title == headline(blind)
    shown = GatePolicy(require="shown", max_drop=0.02)
    certain = [c.model_copy(update={"p_shown": 0.01}) for c in tolerant]
    assert headline(judge(certain, shown)) == "gate: passed (2 passed)"


def test_a_plan_shows_the_items_needed(factory, tmp_path):
    old, new = factory.planted(200, 8, 12, 100)
    for name, scores in (("old", old), ("new", new)):
        factory.write_run(tmp_path / name, {"a": scores})
    policy = GatePolicy(max_drop=0.02, require="shown")
    verdict = gate(one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new")), policy)
    check = verdict.outcomes[0].check
    assert check.needed == pairs_to_show(0.1, 0.02)
    assert check.p_shown == CountTest(8, 12, 200).shown_p(0.02)
    table = verdict_table(verdict, plan=True)
    assert table.columns[4:8] == ["p", "p shown", "n", "n needed"]
    assert table.rows[0][5:8] == [f"{check.p_shown:.4f}", "200", f"{check.needed:,}"]
    out = io.StringIO()
    print_tables([table], Console(file=out, width=80))
    assert f"{check.needed:,}" in out.getvalue()
    assert verdict.exit_code == 2


def test_a_plan_of_80_columns_breaks_long_names_after_an_underscore(factory, tmp_path):
    old, new = factory.planted(1000, 80, 120, 500)
    for name, scores in (("old", old), ("new", new)):
        factory.write_run(tmp_path / name, {"gks_demo_goals_en": scores})
    policy = GatePolicy(max_drop=0.02, require="shown")
    verdict = gate(one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new")), policy)
    table = verdict_table(verdict, plan=True)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["n"], cells["tolerated"], cells["+/−"]) == ("1000", "2.00", "80/120")
    lines = render([table], width=80).splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.strip().startswith(("gks_demo_", "goals_"))]
    assert names[:2] == ["gks_demo_", "goals_en"]


def test_a_policy_may_ask_for_the_mid_p(factory, tmp_path):
    old, new = factory.planted(200, 3, 12, 100)
    for name, scores in (("old", old), ("new", new)):
        factory.write_run(tmp_path / name, {"a": scores})
    runs = [one_run(str(tmp_path / name)) for name in ("old", "new")]
    exact, mid = (
        gate(*runs, GatePolicy(mid_p=mid_p)).outcomes[0].check.p for mid_p in (False, True)
    )
    # 12 of 15: C(15,0..3) / 2^15, and half of C(15,3) less.
    assert exact == pytest.approx(576 / 2**15)
    assert mid == pytest.approx((576 - 455 / 2) / 2**15)


# --- size and power -----------------------------------------------------------------------------


def _simulate(n, discordance, drop, tolerance, trials, seed):
    rng = np.random.default_rng(seed)
    loss, gain = (discordance + drop) / 2, (discordance - drop) / 2
    failed = 0
    cache: dict[tuple[int, int], float] = {}
    for gains, losses, _ in rng.multinomial(n, [gain, loss, 1 - discordance], size=trials):
        key = (int(gains), int(losses))
        if key not in cache:
            cache[key] = CountTest(*key, n).less_p(-tolerance)
        failed += judge([_check(cache[key], n=n)], GatePolicy()).exit_code == 1
    return failed / trials


def test_a_planted_drop_of_five_points_is_caught():
    caught = _simulate(1000, 0.15, 0.05, 0.0, 2_000, seed=1)
    assert caught >= 0.95
    assert caught == pytest.approx(mcnemar_power(1000, 0.15, 0.05), abs=0.01)


@pytest.mark.parametrize(("n", "discordance"), [(100, 0.3), (1000, 0.15), (5000, 0.05)])
def test_no_change_fails_at_most_alpha_often(n, discordance):
    failed = _simulate(n, discordance, 0.0, 0.0, 4_000, seed=n)
    # Three standard errors of the simulation above alpha.
    assert failed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4_000)
    assert failed == pytest.approx(mcnemar_power(n, discordance, 0.0), abs=0.012)


def test_a_drop_as_large_as_tolerated_fails_at_most_alpha_often():
    assert _simulate(1000, 0.15, 0.02, 0.02, 4_000, seed=5) <= 0.05
    assert _simulate(1000, 0.15, 0.0, 0.02, 2_000, seed=6) <= 0.005
    assert _simulate(1000, 0.15, 0.07, 0.02, 2_000, seed=7) >= 0.95


def test_many_unchanged_tasks_together_fail_at_most_alpha_often():
    rng = np.random.default_rng(3)
    failed = 0
    for _ in range(200):
        checks = []
        for _ in range(9):
            gains, losses, _rest = rng.multinomial(300, [0.1, 0.1, 0.8])
            checks.append(_check(CountTest(int(gains), int(losses), 300).less_p(), n=300))
        failed += judge(checks, GatePolicy()).exit_code == 1
    assert failed / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_continuous_metric_has_the_right_size_and_power():
    rng = np.random.default_rng(4)
    same = [paired_test(rng.normal(0, 1, 80), False).less_p() <= 0.05 for _ in range(100)]
    worse = [paired_test(rng.normal(-0.5, 1, 80), False).less_p() <= 0.05 for _ in range(30)]
    assert np.mean(same) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(worse) >= 0.95


# --- from files ---------------------------------------------------------------------------------


@pytest.fixture
def pair(factory, tmp_path):
    def make(gains: int = 50, losses: int = 50, n: int = 1000, **changes: object) -> tuple:
        first, second = factory.planted(n, gains, losses, n // 2)
        factory.write_run(tmp_path / "old", {"a": first, "b": first})
        factory.write_run(tmp_path / "new", {"a": second, "b": first}, **changes)
        return one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new"))

    return make


def test_a_notebook_shows_one_line(pair):
    runs = pair()
    verdict = gate(*runs, GatePolicy())
    assert repr(verdict).startswith(f"Verdict('pass', '{verdict.candidate}' after ")
    assert repr(compare(list(runs))) == "Comparison(baseline 'old', runs: old, new; rows: a, b)"
    assert repr(runs[0]) == f"Run('old', {str(runs[0].folder)!r}, tasks: 2)"


def test_unchanged_runs_pass(pair):
    verdict = gate(*pair(), GatePolicy())
    assert (verdict.status, len(verdict.outcomes)) == ("pass", 2)


def test_a_planted_regression_in_files_is_caught(pair):
    verdict = gate(*pair(50, 100), GatePolicy())
    assert verdict.exit_code == 1
    assert [o.status for o in verdict.outcomes] == ["regression", "pass"]
    check = verdict.outcomes[0].check
    assert (check.gains, check.losses, check.n) == (50, 100, 1000)
    assert check.change == pytest.approx(-0.05)


def test_a_tolerated_drop_passes(pair):
    policy = GatePolicy(tasks={"a": Limits(max_drop=0.05)})
    assert gate(*pair(50, 100), policy).exit_code == 0


def test_an_improvement_passes_and_lower_is_better_is_turned(factory, tmp_path):
    first, second = factory.planted(500, 60, 10, 200)
    for direction, code in ((True, 0), (False, 1)):
        for name, scores in (("old", first), ("new", second)):
            factory.write_run(tmp_path / name, {"a": scores}, higher_is_better=direction)
        runs = one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new"))
        assert gate(*runs, GatePolicy()).exit_code == code


def test_a_group_is_judged_on_its_tasks(factory, tmp_path):
    same = [1.0, 0.0] * 150
    first, second = factory.planted(301, 5, 60, 150)
    for name, scores in (("old", first), ("new", second)):
        groups = {"g": (("a", "b"), False)}
        factory.write_run(tmp_path / name, {"a": scores, "b": same}, groups=groups)
    runs = one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new"))
    outcome = gate(*runs, GatePolicy()).outcomes[-1]
    assert outcome.check.kind == "group"
    assert outcome.check.change == pytest.approx(-55 / 301 / 2)
    assert outcome.status == "regression"
    tolerant = gate(*runs, GatePolicy(groups={"g": Limits(max_drop=0.12)})).outcomes[-1]
    assert tolerant.status == "pass"


def _without_task(new: Path) -> None:
    path = next(new.glob("results_*"))
    data = json.loads(path.read_text())
    del data["results"]["a"]
    path.write_text(json.dumps(data))


def _without_samples(new: Path) -> None:
    next(new.glob("samples_a_*")).unlink()


def _half_written_samples(new: Path) -> None:
    path = next(new.glob("samples_a_*"))
    path.write_text(path.read_text()[:-100])


def _other_documents(new: Path) -> None:
    path = next(new.glob("samples_a_*"))
    path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "x', 1))


def _no_direction(new: Path) -> None:
    path = next(new.glob("results_*"))
    path.write_text(path.read_text().replace('"acc": true', '"acc": null'))


def _no_metric(new: Path) -> None:
    for path in new.glob("*"):
        path.write_text(path.read_text().replace("acc", "bcc"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_task, "missing in the candidate"),
        (_without_samples, "no samples logged"),
        (_half_written_samples, "half written"),
        (_other_documents, "without a partner"),
        (_no_direction, "higher acc"),
        (_no_metric, "no metric acc,none"),
    ],
)
def test_what_cannot_be_judged_never_passes(pair, tmp_path, damage, said):
    pair()
    damage(tmp_path / "new")
    verdict = gate(one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new")), GatePolicy())
    assert verdict.exit_code == 2
    assert said in "; ".join(verdict.outcomes[0].reasons)


def test_other_versions_and_prompts_cannot_be_judged(pair):
    verdict = gate(*pair(version=2.0), GatePolicy())
    assert verdict.exit_code == 2
    assert "version 1.0 against 2.0" in verdict.outcomes[0].reasons[0]


def test_a_required_task_that_nobody_has_cannot_be_judged(pair):
    verdict = gate(*pair(), GatePolicy(required=["piqa"]))
    assert verdict.exit_code == 2
    assert verdict.outcomes[-1].check.name == "piqa"
    listed = gate(*pair(), GatePolicy(only_listed=True, tasks={"c": Limits()}))
    assert listed.exit_code == 2


def test_only_listed_checks_what_is_listed(pair):
    runs = pair(50, 100)
    policy = GatePolicy(only_listed=True, required=["b"])
    assert [c.name for c in measure_checks(*runs, policy)] == ["b"]
    assert gate(*runs, policy).exit_code == 0
    assert gate(*runs, GatePolicy(only_listed=True)).exit_code == 2


def test_a_run_is_not_judged_against_itself(pair, tmp_path):
    old, _ = pair()
    verdict = gate(old, old, GatePolicy())
    assert verdict.exit_code == 2
    assert "same files" in verdict.outcomes[0].reasons[0]


def test_no_detour_hides_that_two_runs_are_one(pair, tmp_path):
    old, _ = pair()
    (tmp_path / "link").symlink_to(tmp_path / "old", target_is_directory=True)
    for path in (tmp_path / "link", tmp_path / "new" / ".." / "old"):
        assert gate(old, one_run(str(path)), GatePolicy()).exit_code == 2


def test_a_group_with_a_task_that_cannot_be_judged_is_not_judged(factory, tmp_path):
    scores = [1.0, 0.0] * 150
    for name in ("old", "new"):
        groups = {"g": (("a", "b"), True)}
        factory.write_run(tmp_path / name, {"a": scores, "b": scores}, groups=groups)
    next((tmp_path / "new").glob("samples_b_*")).unlink()
    verdict = gate(one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new")), GatePolicy())
    reasons = {o.check.name: o.reasons for o in verdict.outcomes}
    assert reasons["a"] == []
    assert "b: cannot be paired" in reasons["g"][0]


def test_new_tasks_of_the_candidate_are_noted(factory, tmp_path):
    scores = [1.0, 0.0] * 150
    factory.write_run(tmp_path / "old", {"a": scores})
    factory.write_run(tmp_path / "new", {"a": scores, "z": scores})
    verdict = gate(one_run(str(tmp_path / "old")), one_run(str(tmp_path / "new")), GatePolicy())
    assert verdict.exit_code == 0
    assert verdict.notes == ["z is not judged: the baseline does not have it"]


# --- texts --------------------------------------------------------------------------------------


def test_junit_counts_and_escapes():
    checks = [_check(0.001, name="<a>&"), _check(problem="mis\x00sing"), _check()]
    root = ElementTree.fromstring(to_junit(judge(checks, GatePolicy())))
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert suite[0].get("name") == "<a>&"
    assert [len(case.findall("failure")) for case in suite] == [1, 0, 0]
    assert suite[1].find("error").get("message") == "missing"


def test_junit_has_the_numbers_of_the_table():
    policy = GatePolicy(max_drop=0.02, require="shown")
    facts = {"limits": policy.limits("task", "a"), "p_shown": 0.2, "clusters": 400}
    verdict = judge([_check(name="a\uffff\ufffe", design_effect=1.6, **facts)], policy)
    root = ElementTree.fromstring(to_junit(verdict))  # XML excludes U+FFFE and U+FFFF
    text = root[0][0].find("system-out").text
    table = verdict_table(verdict)
    assert set(table.columns) <= {part.rsplit(" ", 1)[0] for part in text.split(", ")} | {
        "check", "verdict", "values",
    }  # fmt: skip
    assert "p shown 0.2000" in text
    assert "clusters 400, design effect 1.60" in text


def test_junit_of_nothing_is_an_error():
    root = ElementTree.fromstring(to_junit(unjudgeable("broken file", GatePolicy(), "b", "c")))
    assert root.get("errors") == "1"
    assert "broken file" in root[0][0].find("error").get("message")


def test_the_table_shows_what_failed_first_and_why():
    verdict = judge([_check(), _check(0.001, name="bad"), _check(problem="gone")], GatePolicy())
    table = verdict_table(verdict)
    assert [row[1] for row in table.rows] == ["REGRESSION", "NOT JUDGED", "passed"]
    assert any(note.startswith("bad: worse by") for note in table.sentences())
    assert headline(verdict) == "gate: REGRESSION (1 passed, 1 regression, 1 not judged)"


def test_a_reason_of_several_checks_is_one_note():
    checks = [_check(problem="gone", name=name) for name in ("a", "b")]
    verdict = judge([*checks, _check(problem="torn", name="c")], GatePolicy())
    notes = verdict_table(verdict).sentences()
    assert [note for note in notes if note.endswith((" gone.", " torn."))] == [
        "a, b: gone.",
        "c: torn.",
    ]


def test_a_check_stands_on_one_row_in_80_columns():
    out = io.StringIO()
    name = "gks_bbh_logical_deduction_three_objects"
    verdict = judge([_check(0.01, name=name, change=-0.05, gains=3, losses=20)], GatePolicy())
    print_tables([verdict_table(verdict)], Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = (found for found in lines if "70.00" in found)
    assert all(part in line for part in ("gks_bbh", "REGRESSION", "-5.00", "0.0100", "1000"))
    assert "(continued)" not in out.getvalue()


def test_the_json_reads_back():
    verdict = judge([_check(0.001)], GatePolicy(), "b", "c")
    assert json.loads(verdict.to_json())["schema"] == "gks_eval.gate/1"
    assert Verdict.model_validate_json(verdict.to_json()) == verdict


# --- the policy ---------------------------------------------------------------------------------


def test_a_policy_fills_in_its_defaults():
    text = "max_drop: 0.01\ntasks:\n  a: {alpha: 0.01}\n  b:\ngroups:\n  g: {min_pairs: 5}\n"
    policy = parse_typed(text, GatePolicy, "gate.yaml")
    assert policy.limits("task", "a") == Limits(
        max_drop=0.01, alpha=0.01, min_pairs=100, mid_p=False
    )
    assert policy.limits("task", "b") == policy.limits("task", "unlisted")
    assert policy.limits("group", "g").min_pairs == 5


def test_all_faults_of_a_policy_are_told_at_once(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("max_drop: 2\nalpha: 0\ntasks:\n  a:\n    max_dorp: 0.1\nversion: 7\n")
    with pytest.raises(ConfigError) as caught:
        load_typed(path, GatePolicy)
    for said in ("line 1: max_drop: write a drop as a fraction", "line 2", "line 5", "line 6"):
        assert said in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.0, 5, float("nan")])
def test_a_drop_that_would_tolerate_anything_is_refused(value):
    with pytest.raises(ValueError):
        Limits(max_drop=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_floor_that_would_hold_nothing_is_refused(value):
    with pytest.raises(ValueError):
        Limits(floor=value)


@pytest.mark.parametrize(
    "text", ["min_pairs: true", "min_pairs: '1'", "tasks: {a: {min_pairs: true}}"]
)
def test_pairs_are_a_plain_number(text):
    with pytest.raises(ConfigError, match="min_pairs"):
        parse_typed(text, GatePolicy, "gate.yaml")
