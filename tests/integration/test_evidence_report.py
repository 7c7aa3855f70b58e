"""The report's page without a browser: texts, order, plots and limits."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from evidence_factory import sample, write_run
from markupsafe import escape
from report_pages import HOSTILE, grid, small_page

from gks_eval.errors import ResultsError
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.observed import RoutingShares
from gks_eval.evidence.replicate_runs import find_methods
from gks_eval.evidence.replicates import replicates
from gks_eval.evidence.report.build import Options, build_page
from gks_eval.evidence.report.folds import folds, sheet
from gks_eval.evidence.report.forest import Forest, difference_forest, ticks
from gks_eval.evidence.report.library import routing_heat
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.tables.content import difference_table
from gks_eval.evidence.tables.replicates_text import replicates_table, verdicts
from gks_eval.util.profile_file import CellProfile, write_profile

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_page(tmp_path_factory.mktemp("small"))


def test_the_page_loads_nothing_from_outside(page):
    html = page.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", html)
    assert "@import" not in html
    assert "default-src 'none'" in html
    urls = set(re.findall(r"https?://[^\"'\s<>)\\]+", html))
    assert all("w3.org" in url for url in urls)  # names of XML dialects, never fetched


def test_hostile_texts_stay_texts(page):
    html = page.read_text()
    assert "<script>window.broken" not in html
    assert "<img src=x" not in html
    assert "A &lt;b&gt;report&lt;/b&gt; &amp; more" in html
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert data
    items = json.loads(data.group(1))["items"]
    assert len(items) == 900
    assert items[0][2] == f"{HOSTILE}\nAnswer:"


def test_times_are_shown_where_a_run_has_them(tmp_path):
    for label in ("base", "arrow"):
        write_run(tmp_path / label, {"toy": [1.0, 0.0] * 10})
    runs = find_runs([str(tmp_path)])
    assert 'id="time"' not in build_page(runs, [tmp_path])
    phases = {"transformer": 2.25, "router": 0.5, "other": 0.25}
    profile = CellProfile(seconds=3.0, phases=phases, tokens=12_721, distinct_tokens=5_508)
    write_profile(tmp_path / "arrow", profile)
    html = build_page(runs, [tmp_path])
    assert '<a href="#time">Time</a>' in html
    shown = re.search(r'<table id="times".*?</table>', html, re.S)
    assert shown
    values = re.findall(r'<span class="value">(.*?)</span>', shown.group())
    assert values == ["3.0", *["0.0"] * 4, "2.2", "0.5", "0.0", "0.0", "0.2", "12,721", "5,508"]


def test_replicates_have_a_table(tmp_path):
    """Written by `compare --replicates`, shown as it prints them; names stay texts."""
    bad = "<b onclick>&"
    for seed in range(3):
        for method, right in (("arrow", 20), ("gks", 22 + seed)):
            scores = [1.0] * right + [0.0] * (40 - right)
            write_run(tmp_path / f"s{seed}" / method, {bad: scores})
    found = replicates(find_methods([f"arrow={tmp_path}/s*/arrow", f"{bad}={tmp_path}/s*/gks"]))
    runs = find_runs([str(tmp_path / "s0")])
    page = build_page(runs, [tmp_path])
    assert "Several seeds" not in page
    (tmp_path / "replicates_a.json").write_text(found.to_json())
    page = build_page(runs, [tmp_path])
    assert '<a href="#seeds">Seeds</a>' in page
    shown = re.search(r'<section id="seeds".*?</section>', page, re.S)
    assert shown
    assert bad not in page
    for text in (*verdicts(found), *(cell for row in replicates_table(found).rows for cell in row)):
        assert str(escape(text)) in shown.group().replace("<wbr>", "")
    broken = found.to_json().replace("replicates/1", "replicates/2")
    (tmp_path / "replicates_a.json").write_text(broken)
    with pytest.raises(ResultsError, match=r"replicates_a\.json"):
        build_page(runs, [tmp_path])


def test_names_from_outside_stay_texts(tmp_path):
    """Of runs, tasks, groups, experts and layers, in tables, plots, heat maps and samples."""
    bad = "<img src=x>&\"'"
    for label, right in (("base", 20), ("arrow", 30)):
        scores = [1.0] * right + [0.0] * (40 - right)
        change = {"config": {"model": bad, "model_args": bad}}
        groups = {f"{bad}group": ((bad,), False)}
        write_run(tmp_path / label, {bad: scores}, groups=groups, change=change)
    runs = [replace(run, label=f"{bad}{i}") for i, run in enumerate(find_runs([str(tmp_path)]))]
    routing = {"schema": "gks_eval.routing/1", "library": bad, "setting": bad, "top_k": 1}
    shares = {"tokens": 1, "share": [[1.0]], "mean_coefficient": [[1.0]], "entropy": [0]}
    routing |= {"experts": [bad], "layers": [bad], "tasks": {bad: shares}}
    (tmp_path / "routes.json").write_text(json.dumps(routing))
    accuracy = {"schema": "gks_eval.routing_accuracy/1", "library": bad, "experts": [bad]}
    accuracy |= {"chance": 1.0, "rows": {bad: 2}, "tokens": {bad: 9}}
    found = {"layers": [bad], "tokens": [0.25], "sequences": [0.5], "confusion": [[0.25]]}
    accuracy |= {"settings": {bad: {**found, "all_tokens": 0.25, "all_sequences": 0.5}}}
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    overlap = {"items": 40, "short": 1, "ngram": 0.125, "question": 0.0, "adapters": {bad: {}}}
    overlap = {"schema": "gks_eval.overlap/1", "library": bad, "n": 13, "tasks": {bad: overlap}}
    (tmp_path / "overlap_a.json").write_text(json.dumps(overlap))
    geometry = {"schema": "gks_eval.geometry/1", "library": bad, "experts": [bad]}
    geometry |= {"general": [bad], "layers": [bad], "norm": {bad: [1.0]}}
    geometry |= {"residual_norm": {bad: {bad: [1.0]}}, "cosine_general": [[0.1]]}
    geometry |= {"cosine_experts": {bad: [[1.0]]}, "prototype_similarity": {}}
    (tmp_path / "geometry.json").write_text(json.dumps(geometry))
    html = build_page(runs, [tmp_path], Options(title=bad))
    assert html.count("<svg") > 4
    assert json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))["total"] == 40
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x&gt;&amp;") > 20
    scores = html[html.index('id="scores"') : html.index('id="changes"')]
    assert "Routing accuracy" in scores
    assert ">25.0<" in "".join(scores.split())
    assert ">12.5/<wbr>0.0<" in "".join(scores.split())


def test_real_runs_of_lm_eval_make_a_page(tmp_path):
    golden = TESTS / "golden" / "evidence"
    runs = find_runs([str(golden / name) for name in ("llama-0", "llama-1", "dummy")])
    html = build_page(runs, [])
    assert "not comparable: ev_maths in dummy" in html
    assert html.count("<h2") == 4


def test_a_single_run_makes_a_page():
    html = build_page(find_runs([str(TESTS / "golden" / "evidence" / "dummy")]), [])
    assert "Change from" not in html


def test_layers_stand_in_the_order_of_the_model():
    layers = [f"model.layers.{i}.self_attn.{m}" for i in (0, 10, 2) for m in ("q", "v")]
    task = {"tokens": 1, "share": [[1.0]] * 6, "mean_coefficient": [[1.0]] * 6, "entropy": [0] * 6}
    routing = {"schema": "gks_eval.routing/1", "library": "l", "setting": "arrow", "top_k": 1}
    routing |= {"experts": ["e"], "layers": layers, "tasks": {"t": task}}
    plots = routing_heat(RoutingShares.model_validate(routing))
    assert plots
    assert [name for name in plots[1].rows if name.endswith("q")] == [
        f"{i}.self_attn.q" for i in (0, 2, 10)
    ]


def test_a_run_without_a_difference_has_no_place_in_the_plot(tmp_path):
    for label, task in (("base", "a"), ("arrow", "a"), ("other", "b")):
        write_run(tmp_path / label, {task: [1.0, 0.0] * 20})
    comparison = compare(find_runs([str(tmp_path)]), CompareOptions(force=True), alone=True)
    forest = difference_forest(comparison, comparison)
    assert forest
    assert (forest.labels, [lane.name for lane in forest.lanes]) == (["arrow"], ["a"])


def _comparison(folder: Path) -> Comparison:
    """Two runs of four tasks: two in a small group, three in a large one, one in none."""
    groups = {"large": (("a", "b", "c"), False), "small": (("a", "b"), False)}
    for label, right in (("base", 20), ("arrow", 25)):
        scores = [1.0] * right + [0.0] * (40 - right)
        write_run(folder / label, dict.fromkeys("abcd", scores), groups=groups)
    return compare(find_runs([str(folder)]), CompareOptions(force=True), alone=True)


def test_a_task_stands_in_its_smallest_group_only(tmp_path):
    found = folds(_comparison(tmp_path))
    assert [(fold.title, [row.name for row in fold.comparison.rows]) for fold in found] == [
        ("", ["large", "small"]),
        ("large", ["c"]),
        ("small", ["a", "b"]),
        ("tasks in no group", ["d"]),
    ]


def test_positions_in_a_plot_are_the_values(tmp_path):
    comparison = _comparison(tmp_path)
    forest = difference_forest(comparison, comparison)
    assert forest
    # Two ticks fix the scale; every value and bound must lie on it.
    (x0, t0), *_, (x1, t1) = [(x, float(text)) for x, text in forest.ticks]
    place = {row.name: row.differences[0] for row in comparison.rows}
    for lane in forest.lanes:
        (mark,), d = lane.marks, place[lane.name]
        for x, value in ((mark.at, d.difference), (mark.low, d.low), (mark.high, d.high)):
            assert t0 + (x - x0) / (x1 - x0) * (t1 - t0) == pytest.approx(100 * value, abs=0.05)
    assert forest.zero == pytest.approx(x0 + (0 - t0) / (t1 - t0) * (x1 - x0), abs=0.02)


def test_an_axis_has_three_to_six_ticks():
    rng = random.Random(5)
    for _ in range(500):
        low = rng.uniform(-100, 100)
        high = low + 10 ** rng.uniform(-2, 2)
        found = ticks(low, high)
        assert 3 <= len(found) <= 6
        assert all(low <= value <= high for value in found)


def test_no_two_series_look_alike():
    looks = {(Forest.colour(series), Forest.shape(series)) for series in range(64)}
    assert len(looks) == 64


def test_a_note_belongs_to_the_run_so_that_a_task_is_named_once(tmp_path):
    for label, n in (("base", 40), ("arrow", 40), ("other", 30)):
        rows = [sample(i, float(i % 2)) for i in range(n)]
        write_run(tmp_path / label, {"a": rows})
    comparison = compare(find_runs([str(tmp_path)]), CompareOptions(force=True), alone=True)
    (body,) = sheet(difference_table(comparison)).bodies
    assert body.name == "a"
    assert [row[0][0] for row in body.rows] == ["arrow", "other [1]"]


def test_samples_beyond_the_limit_are_left_out_changed_ones_last(tmp_path):
    folder = grid(tmp_path, {"a": 300})
    html = build_page(find_runs([str(folder)]), [], Options(most=50))
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))
    assert (data["total"], len(data["items"])) == (300, 50)
    assert all(len(set(item[6])) > 1 for item in data["items"])
