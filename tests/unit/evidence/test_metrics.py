"""What kind of metric it is: accuracies, ratios of sums, several filters, values not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.gate import gate
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.results import read_results
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import load_scores
from gks_eval.evidence.tables.content import score_table

RATIOS = {
    "word_perplexity": ("weighted_perplexity", lambda a, w: math.exp(-a.sum() / w.sum())),
    "bits_per_byte": ("bits_per_byte", lambda a, w: -a.sum() / w.sum() / math.log(2)),
    "perplexity": ("perplexity", lambda a, w: math.exp(-a.mean())),
}


def _rolling(
    factory, folder: Path, metric: str, amounts, weights, samples: bool = True, group: bool = False
) -> Path:
    """A run of one task, and a group of it, whose metric is a ratio of sums."""
    aggregation, formula = RATIOS[metric]
    rows = [factory.sample(i, 0.0, metric=metric) for i in range(len(amounts))]
    value = formula(np.asarray(amounts), np.asarray(weights))
    path = factory.write_run(
        folder,
        {"t": rows},
        metric=metric,
        higher_is_better=False,
        samples=samples,
        groups={"g": (("t",), True)} if group else None,
    )
    data = json.loads(path.read_text())
    for name in data["results"]:
        data["results"][name] |= {f"{metric},none": value, f"{metric}_stderr,none": "N/A"}
    data["configs"]["t"]["metric_list"] = [{"metric": metric, "aggregation": aggregation}]
    path.write_text(json.dumps(data))
    for file in folder.glob("samples_*"):
        pairs = zip(rows, amounts, weights, strict=True)
        scored = [row | {metric: a if metric == "perplexity" else [a, w]} for row, a, w in pairs]
        file.write_text("".join(json.dumps(row) + "\n" for row in scored))
    return path


def _texts(n: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    weights = rng.integers(20, 400, n).astype(float)
    return weights, -weights * rng.gamma(9.0, 0.3, n), rng


def _jackknife(statistic, n: int) -> float:
    values = np.array([statistic(np.arange(n) != i) for i in range(n)])
    return math.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())


@pytest.mark.parametrize("metric", list(RATIOS))
def test_a_ratio_of_sums_has_the_jackknifes_spread(factory, tmp_path, metric):
    weights, amounts, rng = _texts()
    if metric == "perplexity":
        weights, amounts = np.ones_like(weights), amounts / weights
    after = amounts + 0.02 * weights + rng.normal(0.0, 0.05, weights.size) * weights
    formula = RATIOS[metric][1]
    for name, values in (("x", amounts), ("y", after)):
        _rolling(factory, tmp_path / name, metric, values.tolist(), weights.tolist())
    row = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0]
    (d,) = row.differences
    assert not row.binary
    for label, values in (("x", amounts), ("y", after)):
        score = row.scores[label]
        assert score.value == pytest.approx(formula(values, weights), rel=1e-12)
        spread = _jackknife(lambda keep, v=values: formula(v[keep], weights[keep]), weights.size)
        assert (score.high - score.low) / 2 == pytest.approx(1.96 * spread, rel=0.06)
    assert d.difference == pytest.approx(formula(after, weights) - formula(amounts, weights))
    spread = _jackknife(
        lambda keep: formula(after[keep], weights[keep]) - formula(amounts[keep], weights[keep]),
        weights.size,
    )
    assert (d.high - d.low) / 2 == pytest.approx(1.96 * spread, rel=0.06)
    # An item gains whose own metric is larger, whatever the others do.
    assert (d.gains, d.losses) == (int((after < amounts).sum()), int((after > amounts).sum()))


def test_gate_judges_rolling_perplexity(factory, tmp_path):
    weights, amounts, _ = _texts()
    _rolling(factory, tmp_path / "x", "word_perplexity", amounts.tolist(), weights.tolist())
    for name, shift in (("same", 0.0), ("worse", -0.02), ("better", 0.02)):
        shifted = (amounts + shift * weights).tolist()
        _rolling(factory, tmp_path / name, "word_perplexity", shifted, weights.tolist())
        runs = find_runs([str(tmp_path / "x"), str(tmp_path / name)])
        verdict = gate(*runs, GatePolicy())
        assert verdict.exit_code == (name == "worse")
        check = verdict.outcomes[0].check
        assert (check.gains, check.losses) == {
            "same": (0, 0), "worse": (0, 200), "better": (200, 0)
        }[name]  # fmt: skip


@pytest.mark.parametrize("metric", ["acc", "f1", "ter", "word_perplexity"])
def test_compare_and_gate_measure_the_same(factory, tmp_path, metric):
    lower = metric in ("ter", "word_perplexity")
    if metric == "word_perplexity":
        weights, amounts, rng = _texts()
        after = amounts - 0.01 * weights + rng.normal(0.0, 0.05, weights.size) * weights
        for name, values in (("x", amounts), ("y", after)):
            args = (metric, values.tolist(), weights.tolist())
            _rolling(factory, tmp_path / name, *args, group=True)
    else:
        rng = np.random.default_rng(5)
        for name, worse in (("x", 0.0), ("y", 0.1 if lower else -0.1)):
            tasks = {t: rng.random(n) + worse for t, n in (("t", 150), ("u", 101))}
            scores = {
                t: list((v > 0.5).astype(float) if metric == "acc" else v) for t, v in tasks.items()
            }
            options = {"metric": metric, "higher_is_better": not lower}
            groups = {"g": (("t", "u"), False)}
            factory.write_run(tmp_path / name, scores, groups=groups, **options)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    # One-sided at 2.5% is two-sided at 5%.
    outcomes = gate(*runs, GatePolicy(alpha=0.025)).outcomes
    checks = {outcome.check.name: outcome.check for outcome in outcomes}
    rows = {row.name: row.differences[0] for row in compare(runs).rows}
    assert checks.keys() == rows.keys() >= {"t", "g"}
    for name, check in checks.items():
        d = rows[name]
        assert check.detectable == pytest.approx(d.detectable, rel=1e-12)
        assert check.change == pytest.approx(-d.difference if lower else d.difference, rel=1e-12)
        assert check.n == d.n
        assert (check.gains, check.losses) == (
            (d.losses, d.gains) if lower else (d.gains, d.losses)
        )
        assert check.p == pytest.approx(d.p / 2, rel=0.05, abs=1e-3)


def test_perplexity_without_samples_or_stderr_has_a_row_and_no_interval(factory, tmp_path):
    weights, amounts, _ = _texts()
    for name in ("x", "y"):
        args = (amounts.tolist(), weights.tolist())
        _rolling(factory, tmp_path / name, "word_perplexity", *args, samples=False)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    row = compare(runs).rows[0]
    assert (row.scores["x"].method, row.differences[0].method) == ("none", "none")
    assert row.differences[0].note == "not paired: no samples logged"
    assert gate(*runs, GatePolicy()).exit_code == 2


def test_samples_of_another_run_are_found_by_the_ratio(factory, tmp_path):
    from gks_eval.errors import ResultsError

    path = _rolling(factory, tmp_path, "bits_per_byte", [-3.0, -5.0], [2, 7])
    path.write_text(
        path.read_text().replace('bits_per_byte,none": 1.28', 'bits_per_byte,none": 1.38')
    )
    task = read_results(path).tasks["t"]
    with pytest.raises(ResultsError, match="of two runs"):
        load_scores(task, "bits_per_byte,none", read_samples(task))


@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(
    ("metric", "binary"),
    [("bleu", False), ("f1", False), ("rouge1", False), ("acc", True), ("exact_match", True),
     ("acc_norm", True), ("pass@1", True), ("prompt_level_strict_acc", True)],
)  # fmt: skip
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_value_of_0_or_1_makes_no_accuracy(factory, tmp_path, metric, binary, samples, value):
    factory.write_run(tmp_path, {"a": [value] * 50}, metric=metric, samples=samples)
    row = compare(find_runs([str(tmp_path)]), alone=True).rows[0]
    (score,) = row.scores.values()
    assert row.binary is binary
    assert (score.method == "wilson") is binary


def test_runs_that_show_an_accuracy_between_them_are_compared_as_one(factory, tmp_path):
    before, after = [0.0] * 50, [1.0] * 20 + [0.0] * 30
    for name, values in (("x", before), ("y", after), ("z", [0.5] * 50)):
        factory.write_run(tmp_path / name, {"a": values}, metric="solved")
    row = compare(find_runs([str(tmp_path / "x"), str(tmp_path / "y")])).rows[0]
    assert row.binary
    assert row.differences[0].method == "mcnemar"
    row = compare(find_runs([str(tmp_path / n) for n in "xyz"])).rows[0]
    assert not row.binary
    assert {score.method for score in row.scores.values()} & {"wilson"} == set()
    # A third run's fractions change how values are shown, not the test of the other two.
    (y, z) = row.differences
    assert (y.method, z.method) == ("mcnemar", "sign flips")
    assert y.p == pytest.approx(2 * 0.5**20)
    check = gate(*find_runs([str(tmp_path / n) for n in "xy"]), GatePolicy()).outcomes[0].check
    assert (check.binary, check.gains, check.losses) == (True, y.gains, y.losses)


@pytest.mark.parametrize("bad", [math.inf, math.nan, "N/A", [1, 2], 10**400])
def test_one_metric_that_is_not_finite_leaves_the_others(factory, tmp_path, bad):
    for name in ("x", "y"):
        path = factory.write_run(tmp_path / name, {"a": [1.0, 0.0] * 60, "b": [1.0, 0.0] * 60})
        data = json.loads(path.read_text())
        data["results"]["a"]["perplexity,none"] = bad if name == "y" else 1.0
        data["higher_is_better"]["a"]["perplexity"] = False
        path.write_text(json.dumps(data))
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    note = f"a is not compared by perplexity,none: it is {str(bad)[:20]} in y"
    comparison = compare(runs)
    assert comparison.notes == [note]
    assert {row.name for row in comparison.rows} == {"a", "b"}
    verdict = gate(*runs, GatePolicy())
    assert (verdict.exit_code, verdict.notes) == (0, [note])
    asked = gate(*runs, GatePolicy(tasks={"a": {"metric": "perplexity"}}))
    assert asked.exit_code == 2
    assert asked.outcomes[0].check.problem == (
        f"perplexity,none is {str(bad)[:20]} in the candidate"
    )


def test_a_usual_metric_that_is_nan_is_not_replaced(factory, tmp_path):
    for name in ("x", "y"):
        path = factory.write_run(tmp_path / name, {"a": [1.0, 0.0] * 60, "b": [1.0, 0.0] * 60})
        data = json.loads(path.read_text())
        data["results"]["a"] |= {"acc,none": math.nan, "acc_norm,none": 0.5}
        path.write_text(json.dumps(data))
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    assert [row.name for row in compare(runs).rows] == ["b"]
    assert gate(*runs, GatePolicy()).exit_code == 2
    policy = GatePolicy(tasks={"b": {}}, only_listed=True)
    assert gate(*runs, policy).exit_code == 0


@pytest.mark.parametrize("bad", ["NaN", "-Infinity", "1" * 400, "-" + "1" * 400])
def test_a_sample_that_is_not_finite_leaves_the_other_metrics(factory, tmp_path, bad):
    path = factory.write_run(tmp_path, {"a": [1.0, 0.0]})
    samples = next(tmp_path.glob("samples_*"))
    samples.write_text(samples.read_text().replace('"acc": 1.0', f'"acc": {bad}'))
    task = read_results(path).tasks["a"]
    scores = load_scores(task, "acc,none", read_samples(task))
    assert scores.items is None
    assert scores.missing == "its samples hold a score of acc that is not finite"


@pytest.mark.parametrize("version", ["0.4.8", "0.4.12"])
def test_a_metric_named_by_a_function_has_the_functions_direction(version):
    folder = Path(__file__).parents[2] / "golden" / "lm_eval_versions" / version / "passes"
    (path,) = folder.glob("results_*.json")
    assert read_results(path).tasks["ev_pass"].metrics["pass@1,none"].higher_is_better is True


def test_functions_that_disagree_give_no_direction(factory, tmp_path):
    change = {
        "results": {"a": {"sample_len": 2, "pass@1,none": 0.5, "acc,none": 0.5}},
        "higher_is_better": {"a": {"acc": True, "up": True, "down": False}},
    }
    path = factory.write_run(tmp_path, {"a": [1.0, 0.0]}, change=change)
    metrics = read_results(path).tasks["a"].metrics
    assert metrics["pass@1,none"].higher_is_better is None
    assert metrics["acc,none"].higher_is_better is True


def _two_filters(factory, folder: Path, strict, loose) -> Path:
    n = len(strict)
    rows = [
        factory.sample(i, strict[i], metric="exact_match", filter_name="strict") for i in range(n)
    ]
    path = factory.write_run(
        folder, {"t": rows}, metric="exact_match", groups={"g": (("t",), True)}
    )
    data = json.loads(path.read_text())
    for name in ("t", "g"):
        entry = data["results"][name]
        for key in list(entry):
            if key.endswith(",none"):
                value = entry.pop(key)
                entry[key.replace(",none", ",strict")] = value
                entry[key.replace(",none", ",loose")] = value
        entry["exact_match,loose"] = sum(loose) / n
    path.write_text(json.dumps(data))
    rows += [
        factory.sample(i, loose[i], metric="exact_match", filter_name="loose") for i in range(n)
    ]
    file = next(folder.glob("samples_*"))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_filter_is_shown_and_gated(factory, tmp_path):
    strict, loose = [1.0, 0.0] * 60, [1.0] * 120
    _two_filters(factory, tmp_path / "x", strict, loose)
    _two_filters(factory, tmp_path / "y", strict, [1.0] * 60 + [0.0] * 60)
    runs = find_runs([str(tmp_path / "x"), str(tmp_path / "y")])
    comparison = compare(runs)
    assert [row.title for row in comparison.rows] == [
        "t (strict)",
        "t (loose)",
        "g (strict)",
        "g (loose)",
    ]
    assert [row.differences[0].difference for row in comparison.rows] == [0.0, -0.5, 0.0, -0.5]
    assert {flip.filter for flip in comparison.flips} == {"loose"}
    assert [cells[0] for cells in score_table(comparison).rows][1] == "t (loose)"
    verdict = gate(*runs, GatePolicy())
    assert {o.check.name: o.status for o in verdict.outcomes} == {
        "t (strict)": "pass", "t (loose)": "regression",
        "g (strict)": "pass", "g (loose)": "regression",
    }  # fmt: skip
    assert verdict.exit_code == 1
    one = compare(runs, CompareOptions(metric="exact_match,strict"))
    assert [row.title for row in one.rows] == ["t", "g"]
    limits = {"tasks": {"t": {"metric": "exact_match,strict"}}, "only_listed": True}
    assert gate(*runs, GatePolicy.model_validate(limits)).exit_code == 0


def test_a_filter_that_the_candidate_lacks_is_not_judged(factory, tmp_path):
    _two_filters(factory, tmp_path / "x", [1.0, 0.0] * 60, [1.0] * 120)
    path = _two_filters(factory, tmp_path / "y", [1.0, 0.0] * 60, [1.0] * 120)
    data = json.loads(path.read_text())
    for name in ("t", "g"):
        del data["results"][name]["exact_match,loose"]
    path.write_text(json.dumps(data))
    verdict = gate(*find_runs([str(tmp_path / "x"), str(tmp_path / "y")]), GatePolicy())
    assert verdict.exit_code == 2
    assert {o.check.name for o in verdict.outcomes if o.status == "unjudged"} == {
        "t (loose)", "g (loose)"
    }  # fmt: skip
