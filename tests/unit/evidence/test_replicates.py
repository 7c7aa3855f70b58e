"""Methods over seeds: planted cases, the formula in plain loops, and refusals."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.replicate_runs import find_methods
from gks_eval.evidence.replicates import replicates
from gks_eval.evidence.stats.replicated import replicated
from gks_eval.evidence.tables.replicates_text import replicates_table, verdicts


@pytest.fixture
def write(factory, tmp_path):
    """Write runs of `arrow` and `gks` per seed; scores by method, seed and task."""

    def written(scores, **options):
        for method, seeds in scores.items():
            for seed, tasks in seeds.items():
                factory.write_run(tmp_path / f"s{seed}" / method, tasks, **options)
        return [f"{method}={tmp_path}/s*/{method}" for method in scores]

    return written


def _outcomes(effects, n=300, seed=0, tasks=("a", "b")):
    """Scores of two methods: one effect per seed, in extra right answers of `gks`."""
    rng = np.random.default_rng(seed)
    base = {task: rng.random(n) for task in tasks}
    found = {"arrow": {}, "gks": {}}
    for number, effect in enumerate(effects):
        arrow = {task: (base[task] + rng.normal(0, 0.05, n) < 0.5) * 1.0 for task in tasks}
        gks = {task: (base[task] + rng.normal(0, 0.05, n) < 0.5 + effect) * 1.0 for task in tasks}
        found["arrow"][number] = {task: list(values) for task, values in arrow.items()}
        found["gks"][number] = {task: list(values) for task, values in gks.items()}
    return found


def _first(sources, **options):
    found = replicates(find_methods(sources), **options)
    return found, found.rows[0]


def test_the_variances_in_plain_loops():
    rng = np.random.default_rng(1)
    seeds, sizes, weights = 4, (30, 7), (0.3, 0.7)
    tasks = [rng.integers(-1, 2, (seeds, n)).astype(float) for n in sizes]
    # The items of the second task are linked with the first ones of the first.
    clusters = [[str(i // 2) for i in range(30)], [str(i) for i in range(7)]]
    found = replicated(tasks, weights, clusters)
    names = sorted({label for own in clusters for label in own})
    parts = np.zeros((seeds, len(names)))
    shares = np.zeros(len(names))
    for task, weight, own in zip(tasks, weights, clusters, strict=True):
        for i, label in enumerate(own):
            shares[names.index(label)] += weight / task.shape[1]
            for s in range(seeds):
                parts[s, names.index(label)] += weight / task.shape[1] * task[s, i]
    changes = [sum(parts[s]) for s in range(seeds)]
    change = sum(changes) / seeds
    from_seeds = sum((one - change) ** 2 for one in changes) / seeds / (seeds - 1)
    means = [sum(parts[:, c]) / seeds for c in range(len(names))]
    from_items = sum((means[c] - change * shares[c]) ** 2 for c in range(len(names)))
    both = 0.0
    for s in range(seeds):
        for c in range(len(names)):
            both += (parts[s, c] - means[c] - (changes[s] - change) * shares[c]) ** 2
    both /= seeds * (seeds - 1)
    assert found.change == pytest.approx(change)
    assert found.by_seed == pytest.approx(changes)
    assert found.seeds_variance == pytest.approx(from_seeds)
    assert found.items_variance == pytest.approx(from_items)
    variance = max(from_seeds, from_items, from_seeds + from_items - both)
    assert found.variance == pytest.approx(variance)
    assert found.seeds_p == pytest.approx(stats.ttest_1samp(changes, 0.0).pvalue)
    low, high = stats.t(seeds - 1, change, math.sqrt(variance)).interval(0.9)
    assert found.interval(0.9) == pytest.approx((max(-1.0, low), min(1.0, high)))
    assert (found.p() < 0.1) == (low > 0 or high < 0)


def test_false_alarms_over_seeds_and_items():
    """Each part alone errs where the other varies; both together hold the level."""
    rng = np.random.default_rng(2)
    alarms = np.zeros(3)
    draws = 400
    for _ in range(draws):
        seeds, items = rng.normal(0, 0.05, (5, 1)), rng.normal(0, 0.3, (1, 200))
        shift = seeds + items
        up = np.clip(0.05 + shift / 2, 0, 1)
        down = np.clip(0.05 - shift / 2, 0, 1)
        u = rng.random((5, 200))
        found = replicated([(u < up) * 1.0 - (u > 1 - down)], [1.0])
        alarms += [found.p() < 0.05, found.seeds_p < 0.05, found.items_p < 0.05]
    both, seeds_alone, items_alone = alarms / draws
    # 5% and three standard errors of 400 draws
    assert both <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert items_alone > 0.085
    assert seeds_alone > both


def test_one_lucky_seed_is_no_effect_of_the_method(write):
    found, row = _first(write(_outcomes([0.15, 0.0, 0.0, 0.0, 0.0])))
    assert row.name == "mean over tasks"
    assert row.p_items < 0.001  # these libraries do differ on these items
    assert row.p > 0.05
    (sentence,) = verdicts(found)
    assert "no difference of the methods is shown" in sentence
    assert "other seeds may not" in sentence


def test_an_effect_of_every_seed_is_found(write):
    found, row = _first(write(_outcomes([0.09, 0.1, 0.11, 0.1, 0.1])))
    assert row.p < 0.01
    assert row.low < 0.1 < row.high
    assert list(row.by_seed) == ["0", "1", "2", "3", "4"]
    assert verdicts(found)[0].endswith(": a difference of the methods.")
    tasks = [row for row in found.rows if row.p_holm is not None]
    ordered = sorted(row.p for row in tasks)
    assert min(row.p_holm for row in tasks) == pytest.approx(2 * ordered[0])


def test_few_seeds_say_what_they_could_detect(write):
    found, row = _first(write(_outcomes([0.1, 0.1, 0.1])))
    assert row.detectable == pytest.approx(
        (stats.t.isf(0.025, 2) + stats.t.isf(0.2, 2)) * math.sqrt(_variance(row))
    )
    assert f"a change of {100 * row.detectable:.2f} is detected" in verdicts(found)[0]
    table = replicates_table(found)
    assert len(table.rows) == 3
    assert "0, 1, 2" in table.notes[0]
    json.loads(found.to_json())


def _variance(row):
    half = (row.high - row.low) / 2
    return (half / stats.t.isf(0.025, 2)) ** 2


def test_nothing_changed(write):
    scores = {"a": [1.0, 0.0] * 20}
    runs = dict.fromkeys(range(3), scores)
    found, row = _first(write({"arrow": runs, "gks": runs}))
    assert (row.change, row.p, row.low, row.detectable) == (0.0, 1.0, None, None)
    assert "no change is detected" in verdicts(found)[0]


def test_groups_weigh_as_lm_eval_does(write):
    outcomes = _outcomes([0.1, 0.1, 0.2], n=40)
    found = replicates(find_methods(write(outcomes, groups={"g": (("a", "b"), False)})))
    rows = {row.name: row for row in found.rows}
    assert rows["g"].change == pytest.approx((rows["a"].change + rows["b"].change) / 2)
    only = replicates(find_methods(write(outcomes)), tasks=("a",))
    assert [row.name for row in only.rows] == ["a"]


def test_items_are_paired_in_any_order(write, factory, tmp_path):
    outcomes = _outcomes([0.1, 0.1, 0.2], n=40, tasks=("a",))
    sources = write(outcomes)
    before = replicates(find_methods(sources))
    rows = [factory.sample(i, v) for i, v in enumerate(outcomes["gks"][1]["a"])]
    factory.write_run(tmp_path / "s1" / "gks", {"a": rows[::-1]})
    rows = [factory.sample(i, v) for i, v in enumerate(outcomes["arrow"][1]["a"])]
    factory.write_run(tmp_path / "s1" / "arrow", {"a": rows[::-1]})
    after = replicates(find_methods(sources))
    assert after.rows[0].stderr_items == pytest.approx(before.rows[0].stderr_items)


def test_recorded_seeds_pair_runs_whatever_their_folders(factory, tmp_path):
    outcomes = _outcomes([0.0, 0.1, 0.2], n=40, tasks=("a",))

    def write(folder, method, number, seed):
        config = {"model": "gks_arrow", "model_args": "", "gks_eval": {"seed": seed}}
        scores = outcomes[method][number]
        factory.write_run(tmp_path / folder / method, scores, change={"config": config})

    for number in range(3):
        write(f"s{number}", "arrow", number, 7 + number)
        write(f"t{2 - number}", "gks", number, 7 + number)
    sources = [f"arrow={tmp_path}/s*/arrow", f"gks={tmp_path}/t*/gks"]
    found = replicates(find_methods(sources))
    assert found.seeds == ["7", "8", "9"]
    changes = {
        str(7 + number): np.mean(outcomes["gks"][number]["a"]) - np.mean(tasks["a"])
        for number, tasks in outcomes["arrow"].items()
    }
    assert found.rows[0].by_seed == pytest.approx(changes)
    write("t3", "gks", 0, 9)
    with pytest.raises(ResultsError, match="trained with the same seed 9"):
        find_methods(sources)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["arrow={}/s*/arrow"], "two methods or more"),
        (["arrow={}/s*/arrow", "{}/s*/gks"], "is not LABEL=PATTERN"),
        (["arrow={}/s*/arrow", "gks={}/s0/gks"], "is not LABEL=PATTERN"),
        (["arrow={}/s*/arrow", "gks={}/*/g*"], "is not LABEL=PATTERN"),
        (["arrow={}/s*/arrow", "arrow={}/s*/gks"], "two methods are called"),
    ],
)
def test_other_forms_are_refused(write, tmp_path, sources, said):
    write(_outcomes([0.0, 0.0, 0.0], n=10))
    with pytest.raises(UsageError, match=said.replace("*", r"\*")):
        find_methods([source.format(tmp_path) for source in sources])


def test_other_runs_are_refused(write, factory, tmp_path):
    sources = write(_outcomes([0.0, 0.0, 0.0], n=10))
    with pytest.raises(ResultsError, match="matches no results"):
        find_methods([sources[0], f"gks={tmp_path}/x*/gks"])
    with pytest.raises(ResultsError, match="holds 2 runs"):
        find_methods([f"arrow={tmp_path}/s*", sources[1]])
    factory.write_run(tmp_path / "s2" / "gks", {"a": [1.0] * 9, "b": [1.0] * 10})
    with pytest.raises(ResultsError, match="10 items against 9"):
        replicates(find_methods(sources))
    for method in ("arrow", "gks"):
        factory.write_run(tmp_path / "s2" / method, {"a": [1.0] * 9, "b": [1.0] * 10})
    with pytest.raises(ResultsError, match="on the same items"):
        replicates(find_methods(sources))
    factory.write_run(tmp_path / "s3" / "gks", {"a": [1.0] * 10})
    with pytest.raises(ResultsError, match="do not both have the seeds 3"):
        find_methods(sources)
    for number in (1, 2, 3):
        shutil.rmtree(tmp_path / f"s{number}")
    factory.write_run(tmp_path / "s1" / "arrow", {"a": [1.0] * 10})
    factory.write_run(tmp_path / "s1" / "gks", {"a": [1.0] * 10})
    with pytest.raises(ResultsError, match="matches 2 seeds"):
        find_methods(sources)


def test_a_mean_over_tasks_leaves_out_metrics_of_which_lower_is_better(factory, tmp_path):
    """An error rate that falls and an accuracy that rises are both gains, so they do not add up."""
    rng = np.random.default_rng(3)
    for number in range(3):
        for method, effect in (("arrow", 0.0), ("gks", 0.2)):
            right = [(rng.random(40) < 0.4 + effect) * 1.0 for _ in range(3)]
            tasks = {name: list(values) for name, values in zip("abc", right, strict=True)}
            directions = {"a": {"acc": True}, "b": {"acc": True}, "c": {"acc": False}}
            folder = tmp_path / f"s{number}" / method
            factory.write_run(folder, tasks, change={"higher_is_better": directions})
    found = replicates(find_methods([f"{name}={tmp_path}/s*/{name}" for name in ("arrow", "gks")]))
    rows = {row.name: row for row in found.rows}
    both = (rows["a"].change + rows["b"].change) / 2
    assert rows["mean over tasks"].change == pytest.approx(both)
    directions = {name: row.higher_is_better for name, row in rows.items()}
    assert directions == {"mean over tasks": True, "a": True, "b": True, "c": False}
    assert "A lower value is better in c." in replicates_table(found).notes[0]


def test_links_that_only_some_seeds_record_count(factory, tmp_path):
    outcomes = _outcomes([0.1, 0.1, 0.2], n=40, tasks=("a",))

    def clusters(linked_seeds):
        for number in range(3):
            for method in ("arrow", "gks"):
                rows = [factory.sample(i, v) for i, v in enumerate(outcomes[method][number]["a"])]
                for i, row in enumerate(rows):
                    row["doc"]["text"] = i // 2
                links = {"metadata": {"cluster": "text"}} if number in linked_seeds else {}
                change = {"configs": {"a": links}}
                factory.write_run(tmp_path / f"s{number}" / method, {"a": rows}, change=change)
        sources = [f"{name}={tmp_path}/s*/{name}" for name in ("arrow", "gks")]
        row = replicates(find_methods(sources)).rows[0]
        return row.clusters, row.stderr_items

    assert clusters({2})[0] == 20
    assert clusters({2}) == clusters({0, 1, 2})
    assert clusters(())[0] is None


def test_a_pattern_is_literal_but_for_its_star(factory, tmp_path):
    root = tmp_path / "[a]?"
    for number in range(3):
        for method in ("arrow", "gks"):
            factory.write_run(root / f"s{number}" / method, {"a": [1.0, 0.0] * 5})
    sources = [f"arrow={root}//s*/arrow", f"gks={root}/./s*/gks/"]
    assert [list(method.runs) for method in find_methods(sources)] == [["0", "1", "2"]] * 2
