"""The reasons that a verdict gives, word for word, and the bounds of a policy."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gks_eval.errors import ConfigError
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.verdict import Check, Outcome, judge, unjudgeable
from gks_eval.util.yaml import parse_typed

POLICY = GatePolicy()


def outcome(policy: GatePolicy = POLICY, **facts: object) -> Outcome:
    """Judge one check: a drop of five points in 1000 pairs, unless `facts` say otherwise."""
    known: dict[str, object] = {
        "kind": "task",
        "name": "a",
        "limits": policy.limits("task", "a"),
        "baseline": 0.75,
        "candidate": 0.7,
        "higher_is_better": True,
        "change": -0.05,
        "n": 1000,
        "p": 0.001,
    }
    return judge([Check.model_validate(known | facts)], policy).outcomes[0]


def limits(**changes: object) -> Limits:
    return POLICY.limits("task", "a").model_copy(update=changes)


@pytest.mark.parametrize(
    ("facts", "status", "reasons"),
    [
        ({}, "regression", ["worse by 0.05 (p = 0.001, n = 1000)"]),
        (
            {"limits": limits(max_drop=0.02)},
            "regression",
            ["worse by 0.05 beyond the tolerated 0.02 (p = 0.001, n = 1000)"],
        ),
        (
            {"limits": limits(floor=0.72)},
            "regression",
            ["0.7 misses the floor of 0.72", "worse by 0.05 (p = 0.001, n = 1000)"],
        ),
        ({"limits": limits(floor=0.72), "p": 0.9}, "regression", ["0.7 misses the floor of 0.72"]),
        ({"limits": limits(floor=0.7), "p": 0.9}, "pass", []),
        (
            {"limits": limits(floor=0.72), "p": 0.9, "candidate": 0.0},
            "regression",
            ["0 misses the floor of 0.72"],
        ),
        ({"limits": limits(floor=0.7), "p": 0.9, "higher_is_better": None}, "pass", []),
        ({"limits": limits(floor=0.7), "p": 0.9, "higher_is_better": False}, "pass", []),
        (
            {"limits": limits(floor=0.6), "p": 0.9, "higher_is_better": False},
            "regression",
            ["0.7 misses the floor of 0.6"],
        ),
        ({"limits": limits(floor=0.72), "p": 0.9, "higher_is_better": False}, "pass", []),
        ({"p": None}, "unjudged", ["no test could be made"]),
        ({"n": 99}, "unjudged", ["only 99 of the 100 pairs needed"]),
        ({"n": 99, "problem": "gone"}, "unjudged", ["gone"]),
        ({"p": None, "n": 0}, "unjudged", ["no test could be made"]),
        # Limits that say nothing: alpha 0.05, one pair, no tolerance, no floor.
        ({"limits": Limits(), "n": 1, "p": 0.06}, "pass", []),
        (
            {"limits": Limits(), "n": 1, "p": 0.05},
            "regression",
            ["worse by 0.05 (p = 0.05, n = 1)"],
        ),
        ({"limits": Limits(), "n": 0}, "unjudged", ["only 0 of the 1 pairs needed"]),
    ],
)
def test_every_status_has_its_reasons(facts, status, reasons):
    found = outcome(**facts)
    assert (found.status, found.reasons) == (status, reasons)
    unjudged = status == "unjudged"
    assert found.p_adjusted == (None if unjudged else facts.get("p", 0.001))


def test_a_candidate_that_is_missing_is_below_no_floor():
    found = outcome(limits=limits(floor=0.72), candidate=None, problem="missing", p=None)
    assert (found.status, found.reasons) == ("unjudged", ["missing"])


def test_what_no_test_saw_keeps_out_of_the_correction():
    def check(name: str, **facts: object) -> Check:
        known: dict[str, object] = {
            "kind": "task",
            "name": name,
            "limits": POLICY.limits("task", name),
            "n": 1000,
        }
        return Check.model_validate(known | facts)

    checks = [
        check("few", p=0.001, n=99),
        check("a", p=0.03),
        check("none"),
        check("b", p=0.01),
        check("broken", p=0.002, problem="broken"),
        check("c", p=0.04),
    ]
    found = {o.check.name: o.p_adjusted for o in judge(checks, POLICY).outcomes}
    # Holm over three: 3 * 0.01, 2 * 0.03, and no smaller than the one before.
    assert found == {
        "few": None,
        "a": pytest.approx(0.06),
        "none": None,
        "b": pytest.approx(0.03),
        "broken": None,
        "c": pytest.approx(0.06),
    }


def test_a_check_of_which_nothing_is_known_claims_nothing():
    known = {"kind": "group", "name": "g", "limits": limits()}
    assert Check.model_validate(known).model_dump(exclude=set(known)) == {
        "metric": "",
        **dict.fromkeys(("baseline", "candidate", "higher_is_better", "change"), None),
        "binary": False,
        "n": 0,
        **dict.fromkeys(("gains", "losses", "p", "detectable", "clusters", "design_effect"), None),
        **dict.fromkeys(("p_shown", "needed", "reading"), None),
        "problem": "",
    }


def test_a_verdict_keeps_names_and_notes():
    (check,) = [Check(kind="task", name="a", limits=limits(), p=0.5, n=100)]
    verdict = judge([check], POLICY, "old", "new", ["seen"])
    assert (verdict.baseline, verdict.candidate, verdict.notes) == ("old", "new", ["seen"])
    assert verdict.policy == POLICY
    nothing = judge([], POLICY, notes=["seen"])
    assert (nothing.baseline, nothing.candidate) == ("", "")
    assert nothing.notes == ["seen", "there was nothing to check"]
    broken = unjudgeable("broken", POLICY, "old", "new")
    assert (broken.baseline, broken.candidate, broken.exit_code) == ("old", "new", 2)
    assert broken.policy == POLICY


def test_the_json_is_indented_and_ends_the_line():
    text = judge([], POLICY).to_json()
    assert text.startswith('{\n "schema": "gks_eval.gate/1",\n "status": "unjudged",\n')
    assert text.endswith("}\n")


# --- the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("max_drop", [0.0, 0.02, 0.99], [-1e-9, 1.0, 2.0]),
        ("alpha", [1e-9, 0.05, 0.49], [0.0, 0.5, -0.1, 1.0]),
        ("min_pairs", [1, 2, 10**6], [0, -1, 1.5]),
        ("floor", [-1e300, 0.0, 1.0, 30.0], [float("nan"), float("inf")]),
        ("metric", ["f", "f1,none", "m" * 300], ["", "m" * 301]),
    ],
)
def test_the_bounds_of_every_limit(field, good, bad):
    models = [Limits] if field in ("floor", "metric") else [Limits, GatePolicy]
    for model in models:
        for value in good:
            assert getattr(model.model_validate({field: value}), field) == value
        for value in bad:
            with pytest.raises(ValidationError, match=field):
                model.model_validate({field: value})


def test_the_defaults_of_a_policy():
    policy = parse_typed("{}", GatePolicy, "gate.yaml")
    assert policy.model_dump() == {
        "version": 1,
        "max_drop": 0.0,
        "alpha": 0.05,
        "min_pairs": 100,
        "correction": "holm",
        "require": "no-regression-shown",
        "mid_p": False,
        "tasks": {},
        "groups": {},
        "required": [],
        "only_listed": False,
    }
    assert Limits().model_dump() == {
        "max_drop": None,
        "alpha": None,
        "min_pairs": None,
        "floor": None,
        "metric": None,
        "mid_p": False,
    }


def test_limits_of_a_task_and_of_a_group_of_one_name():
    policy = parse_typed(
        "{max_drop: 0.01, alpha: 0.02, min_pairs: 30,"
        " tasks: {a: {max_drop: 0.0, floor: 0.5, metric: f1}},"
        " groups: {a: {alpha: 0.001, min_pairs: 1}}}",
        GatePolicy,
        "gate.yaml",
    )
    task = Limits(max_drop=0.0, alpha=0.02, min_pairs=30, floor=0.5, metric="f1")
    assert policy.limits("task", "a") == task
    assert policy.limits("group", "a") == Limits(max_drop=0.01, alpha=0.001, min_pairs=1)
    assert policy.limits("group", "b") == Limits(max_drop=0.01, alpha=0.02, min_pairs=30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [a, b]", "tasks"),
        ("groups: 3", "groups"),
        ("tasks: {'': {}}", "tasks"),
        ("tasks: {a: 3}", "tasks"),
        ("required: ['']", "required"),
        ("version: 2", "version"),
        ("correction: bonferroni", "correction"),
    ],
)
def test_what_is_no_policy_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_typed(text, GatePolicy, "gate.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "tasks: {a: }",
        "groups: {a: }",
        "tasks: {a: {max_drop: , alpha: , min_pairs: , floor: , metric: }}",
    ],
)
def test_a_name_without_limits_has_the_defaults(text):
    policy = parse_typed(text, GatePolicy, "gate.yaml")
    assert {**policy.tasks, **policy.groups} == {"a": Limits()}
