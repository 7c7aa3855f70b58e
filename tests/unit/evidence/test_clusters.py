"""Linked items: found in the task's metadata, named by --cluster, used by every test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import assert_sentence
from scipy import stats

from gks_eval.errors import UsageError
from gks_eval.evidence.clusters import with_clusters
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.comparison import Difference, Row
from gks_eval.evidence.gate import gate
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.runs import Run, one_run
from gks_eval.evidence.stats.item_score import item_score
from gks_eval.evidence.tables.content import difference_table
from gks_eval.evidence.tables.csv_file import to_csv

N = 90
LANGUAGES = ("de", "en", "fr")


def _scores(seed: int) -> dict[str, list[float]]:
    """Three languages, of which two always agree."""
    rng = np.random.default_rng(seed)
    right = [float(x) for x in rng.random(N) < 0.6]
    return {"de": right, "en": right, "fr": [float(x) for x in rng.random(N) < 0.6]}


def _run(factory: Any, folder: Path, seed: int, cluster: str | None, **more: Any) -> Run:
    tasks: dict[str, Sequence[dict[str, Any]]] = {}
    for language, values in _scores(seed).items():
        rows = [factory.sample(i, v, question=f"{language} {i}") for i, v in enumerate(values)]
        for row in rows:
            row["doc"] |= {"id": f"q{row['doc_id']}", "text": f"text {row['doc_id'] // 3}"}
        tasks[language] = rows
    metadata = {"version": 1.0} | ({"cluster": cluster} if cluster else {})
    configs = {
        name: {"task": name, "dataset_path": "org/set", "metadata": metadata} for name in tasks
    }
    groups = {"all": (LANGUAGES, False)}
    change = {"configs": configs}
    factory.write_run(folder, tasks, groups=groups, change=change, **more)
    return one_run(str(folder))


@pytest.fixture
def two(factory, tmp_path):
    def make(first: str | None, second: str | None) -> list[Run]:
        return [
            _run(factory, tmp_path / "old", 0, first),
            _run(factory, tmp_path / "new", 1, second),
        ]

    return make


def _row(runs: list[Run], name: str) -> Row:
    return next(row for row in compare(runs).rows if row.name == name)


def _difference(runs: list[Run], name: str = "all") -> Difference:
    return _row(runs, name).differences[0]


def _changes() -> list[np.ndarray]:
    old, new = _scores(0), _scores(1)
    return [np.array(new[name]) - np.array(old[name]) for name in LANGUAGES]


# Results from before a task declared its links are compared with later ones.
@pytest.mark.parametrize(("first", "second"), [("id", "id"), ("id", None), (None, "id")])
def test_translations_of_an_item_are_one_cluster(two, first, second):
    d = _difference(two(first, second))
    sums = sum(changes / N / 3 for changes in _changes())
    assert (d.n, d.clusters, d.method) == (3 * N, N, "item score")
    assert d.p == pytest.approx(2 * stats.norm.sf(abs(sums.sum()) / math.sqrt((sums**2).sum())))
    squares = sum(((changes / N / 3) ** 2).sum() for changes in _changes())
    assert d.design_effect == pytest.approx((sums**2).sum() / squares)
    assert d.design_effect > 1.3


def test_without_links_the_items_count_one_by_one(two):
    runs = two("id", "id")
    for found in (two(None, None), with_clusters(runs, "none")):
        d = _difference(found)
        assert (d.clusters, d.design_effect) == (None, None)
        assert d.p == pytest.approx(item_score(_changes(), [1 / 3] * 3).two_sided_p())
        assert _difference(found, "de").method == "mcnemar"
    assert _difference(with_clusters(runs, "declared")).clusters == N


def test_a_field_links_the_items_of_one_task_too(two):
    runs = with_clusters(two(None, None), "text")
    d = _difference(runs, "fr")
    sums = _changes()[2].reshape(-1, 3).sum(axis=1) / N
    assert (d.method, d.n, d.clusters) == ("item score", N, N // 3)
    assert d.p == pytest.approx(2 * stats.norm.sf(abs(sums.sum()) / math.sqrt((sums**2).sum())))
    assert _row(runs, "fr").scores["old"].method == "t"
    assert _difference(runs).clusters == N // 3
    # A task that declares its links keeps them.
    assert _difference(with_clusters(two("id", "id"), "text")).clusters == N


def test_place_and_task_are_fields_of_every_sample(two):
    assert _difference(with_clusters(two(None, None), "doc_id")).clusters == N
    d = _difference(with_clusters(two(None, None), "task"))
    assert d.clusters == 3
    assert d.p >= 0.25  # three signs


def test_a_field_that_no_document_has_is_refused(two):
    with pytest.raises(UsageError) as caught:
        with_clusters(two(None, None), "txt")
    assert_sentence(caught.value, "--cluster: no document", "'txt'", "text")


def test_the_gate_and_the_leaderboard_use_the_links(two):
    runs = two("id", "id")
    check = gate(*runs, GatePolicy(groups={"all": {}}, only_listed=True)).outcomes[0].check
    found = _difference(runs)
    assert (check.clusters, check.design_effect) == (found.clusters, found.design_effect)
    sums = sum(changes / N / 3 for changes in _changes())
    assert check.p == pytest.approx(stats.norm.cdf(sums.sum() / math.sqrt((sums**2).sum())))
    linked, alone = (
        compare(which, CompareOptions(leaderboard=True)).leaderboard.places[0].score
        for which in (runs, with_clusters(runs, "none"))
    )
    assert linked.high - linked.low > 1.1 * (alone.high - alone.low)


def test_the_tables_show_clusters_only_where_items_are_linked(two):
    linked, alone = (compare(two(field, field)) for field in ("id", None))
    table = difference_table(linked)
    assert table.columns[-2:] == ["clusters", "design effect"]
    d = next(row for row in linked.rows if row.name == "all").differences[0]
    assert table.rows[-1][-2:] == [str(N), f"{d.design_effect:.2f}"]
    assert "clusters" not in difference_table(alone).columns
    assert f",{N},{d.design_effect}," in to_csv(linked)


@pytest.mark.parametrize("declared", [3, ["id"], {"a": 1}, None, True])
def test_other_metadata_links_nothing(factory, tmp_path, declared):
    runs = [_run(factory, tmp_path / name, seed, declared) for seed, name in enumerate("ab")]
    assert _difference(runs).clusters is None


def test_items_without_the_field_are_not_linked(factory, tmp_path):
    for seed, name in enumerate("ab"):
        rows = [factory.sample(i, float((i + seed) % 2)) for i in range(60)]
        for row in rows[:30]:
            row["doc"]["passage"] = "the same"
        rows[30]["doc"]["passage"] = None
        rows[31]["doc"] = "no mapping"
        configs = {"t": {"task": "t", "metadata": {"cluster": "passage"}}}
        factory.write_run(tmp_path / name, {"t": rows}, change={"configs": configs})
    assert _difference([one_run(str(tmp_path / name)) for name in "ab"], "t").clusters == 31


def test_intervals_of_scores_count_clusters_where_the_items_do_not_vary(factory, tmp_path):
    """One cluster has no interval; items that are all right are as many as their clusters."""

    def score(name: str, values: list[float], field: str) -> tuple[float | None, float | None]:
        rows = [factory.sample(i, v) for i, v in enumerate(values)]
        for i, row in enumerate(rows):
            row["doc"]["text"] = i // 4
        for label in "ab":
            factory.write_run(tmp_path / name / label, {"t": rows})
        runs = [one_run(str(tmp_path / name / label)) for label in "ab"]
        found = compare(with_clusters(runs, field)).rows[0].scores["a"]
        return found.low, found.high

    assert score("mixed", [1.0, 0.0] * 20, "task") == (None, None)
    low, high = score("right", [1.0] * 40, "text")
    assert (low, high) == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95, "wilson"))
    low, high = score("wrong", [0.0] * 40, "task")
    assert (low, high) == pytest.approx(stats.binomtest(0, 1).proportion_ci(0.95, "wilson"))
