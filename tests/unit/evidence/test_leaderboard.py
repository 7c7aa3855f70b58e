"""The leaderboard: ranks with ties, what a setting needs and costs, and its tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from itertools import product

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.cost import time_ratios
from gks_eval.evidence.report.build import build_page
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.stats.ranks import pairwise, ranks
from gks_eval.evidence.tables.csv_file import to_csv
from gks_eval.evidence.tables.latex_table import to_latex
from gks_eval.evidence.tables.leaderboard import leaderboard_tables
from gks_eval.evidence.tables.markdown import to_markdown
from gks_eval.evidence.tables.terminal import print_tables


def _ranks_in_loops(tasks, weights, alpha):
    """Holm, the item score and the reachability of `ranks`, one number at a time."""
    runs = range(len(tasks[0]))
    tests = []
    for a in runs:
        for b in range(a + 1, len(runs)):
            parts = []
            for scores, weight in zip(tasks, weights, strict=True):
                pairs = zip(scores[a], scores[b], strict=True)
                parts += [weight * (x - y) / scores.shape[1] for x, y in pairs if x != y]
            mean = math.fsum(parts)
            p = math.erfc(abs(mean) / math.sqrt(2 * math.fsum(x * x for x in parts)))
            if len(parts) < 10:
                sums = [math.fsum(s * x for s, x in zip(signs, parts, strict=True))
                        for signs in product((1, -1), repeat=len(parts))]  # fmt: skip
                p = sum(abs(s) >= abs(mean) - 1e-12 for s in sums) / len(sums)
            tests.append((p, a, b, mean))
    below = {a: set() for a in runs}
    for done, (p, a, b, mean) in enumerate(sorted(tests)):
        if p * (len(tests) - done) >= alpha:
            break
        below[a if mean > 0 else b].add(b if mean > 0 else a)

    def reached(a):
        return below[a].union(*(reached(b) for b in below[a]))

    return [1 + sum(a in reached(b) for b in runs) for a in runs]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_equal_a_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    quality = rng.choice([0.3, 0.5, 0.7], size=7) + rng.normal(0, 0.05, size=7)
    sizes = rng.integers(1, 150, size=3)
    tasks = [(rng.random((7, n)) < quality[:, None]).astype(float) for n in sizes]
    tasks[0] = tasks[0] * 0.5 + 0.25 * rng.random(tasks[0].shape)  # no zeros and ones
    weights = rng.dirichlet(np.ones(3))
    assert ranks(tasks, weights) == _ranks_in_loops(tasks, weights, 0.05)


def test_three_planted_levels_share_their_ranks():
    rng = np.random.default_rng(0)
    levels = np.repeat([0.8, 0.5, 0.2], [4, 3, 5])
    tasks = [(rng.random((12, 400)) < levels[:, None]).astype(float) for _ in range(2)]
    order = rng.permutation(12)
    found = ranks([scores[order] for scores in tasks], [0.5, 0.5])
    # four on the first level, then 1 + 4, then 1 + 4 + 3
    assert found == [{0.8: 1, 0.5: 5, 0.2: 8}[level] for level in levels[order]]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_is_better_than_another_has_the_smaller_rank(seed):
    rng = np.random.default_rng(seed)
    scores = (rng.random((5, 15)) < np.linspace(0.02, 0.98, 5)[:, None]).astype(float)
    z, p = pairwise([scores], [1.0])
    found = ranks([scores], [1.0])
    separated = np.argwhere((p < 0.05 / 10) & (z > 0))  # by Bonferroni, and so by Holm
    assert len(separated)
    assert all(found[better] < found[worse] for better, worse in separated)


def test_equal_runs_share_the_first_rank():
    same = np.tile(np.arange(50) % 2.0, (40, 1))
    assert ranks([same], [1.0]) == [1] * 40
    assert ranks([same[:1]], [1.0]) == [1]


def test_five_changed_items_are_never_enough():
    scores = np.zeros((2, 500))
    scores[0, :5] = 1
    assert ranks([scores], [1.0]) == [1, 1]  # 2 * 0.5^5 = 0.0625
    scores[0, :9] = 1
    assert ranks([scores], [1.0]) == [1, 2]


def test_z_has_the_level_of_the_exact_test_of_changed_items():
    # 16 gains, no losses: z = sqrt(16), and McNemar's exact p is 2^-15 = 3.1e-5
    scores = np.zeros((2, 100))
    scores[0, :16] = 1
    z, p = pairwise([scores], [1.0])
    assert z[0, 1] == -z[1, 0] == pytest.approx(4.0)
    assert p[0, 1] == p[1, 0] == pytest.approx(2 * norm.sf(4.0))
    scores[0, 8:] = 0  # 8 gains: exact
    assert pairwise([scores], [1.0])[1][0, 1] == pytest.approx(2.0**-7)


def test_false_ranks_are_no_more_frequent_than_alpha():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        easy = rng.random(60)
        scores = (rng.random((10, 60)) < easy).astype(float)  # all runs are equally good
        wrong += ranks([scores[:, :40], scores[:, 40:]], [0.5, 0.5]) != [1] * 10
    assert wrong <= 17  # binomial of 200 and 5%: more than 17 has a probability of 1.2%


FORTY = [
    ("base", "base", 0.5),
    *((f"gks-avg_rule-delta_temperature-{i}", "routers", 0.8) for i in range(13)),
    *((f"merge-ties_density-0.{i}", "merges", 0.5) for i in range(9)),
    *((f"expert-{i}", "experts", 0.5) for i in range(7)),
    *((f"gks-avg_general-random_seed-{i}", "controls", 0.2) for i in range(10)),
]


@pytest.fixture(scope="module")
def forty(tmp_path_factory, factory):
    """A grid of 40 settings on three levels, as its folder."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("grid")
    for place, (name, family, share) in enumerate(FORTY):
        tasks = {task: [float(x) for x in rng.random(300) < share] for task in ("piqa", "boolq")}
        needs = "prepared vectors" if place == 3 else "nothing"
        recorded = {"model": "gks_arrow", "gks_eval": {"family": family, "needs": needs}}
        factory.write_run(root / name, tasks, change={"config": recorded})
        spent = {"seconds": 2.0 + place, "distinct_tokens": 4000}
        (root / name / "cell.json").write_text(json.dumps({"spent": spent}), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def comparison(forty):
    return compare(find_runs([str(forty)]), CompareOptions(draws=199))


@pytest.fixture(scope="module")
def section(forty):
    """The page's leaderboard."""
    page = build_page(find_runs([str(forty)]), [forty])
    return page[page.index('<section id="leaderboard"') : page.index('<section id="scores"')]


def test_forty_settings_have_rank_mean_time_and_needs(comparison):
    places = {place.run: place for place in comparison.leaderboard.places}
    assert {place.rank for place in places.values() if place.family == "routers"} == {1}
    assert {place.rank for place in places.values() if place.family == "controls"} == {31}
    for name in ("base", "merge-ties_density-0.3", "expert-5"):
        assert places[name].rank == 14
    first = comparison.leaderboard.places[0]
    values = [row.scores[first.run].value for row in comparison.rows]
    assert first.score.value == pytest.approx(sum(values) / 2)
    assert first.score.low < first.score.value < first.score.high
    assert places["base"].time_ratio == 1.0
    assert places["gks-avg_rule-delta_temperature-0"].time_ratio is not None
    assert [p.run for p in places.values() if p.needs == "prepared vectors"] == [FORTY[3][0]]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_forty_settings_are_readable_in_a_terminal(comparison, width):
    out = io.StringIO()
    print_tables(leaderboard_tables(comparison), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "continued" not in text
    assert "Left out" not in text
    for family in ("base", "routers", "merges", "experts", "controls"):
        assert family in text
    assert text.count("nothing") == 39
    if width >= 100:
        assert all(name in text for name, _, _ in FORTY)
        assert len(lines) < 60  # one line per setting


def test_every_format_has_the_leaderboard(comparison, section):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    ranked = [row for row in rows if row["kind"] == "leaderboard"]
    assert len(ranked) == 40
    assert {row["rank"] for row in ranked if row["family"] == "controls"} == {"31"}
    assert len(json.loads(comparison.to_json())["leaderboard"]["places"]) == 40
    markdown = to_markdown(leaderboard_tables(comparison))
    assert markdown.count("| routers |") == 13
    latex = to_latex(comparison)
    assert latex.count(r"\begin{tabular}") == 2
    assert r"\multicolumn{6}{l}{controls}" in latex
    assert section.count("<tbody>") == 5
    assert section.count("<tr>") == 41


def test_names_and_words_are_aligned_left_and_numbers_right(comparison, section):
    (table,) = leaderboard_tables(comparison)
    assert table.columns == ["family", "setting", "rank", "mean", "95% interval", "time", "needs"]
    aligned = ":-- | :-- | --: | --: | --: | --: | :--"
    assert f"| {aligned} |" in to_markdown([table])
    heads = re.findall(r'<th scope="col"( class="words")?>', section)
    assert [bool(head) for head in heads] == [sign.startswith(":") for sign in aligned.split(" | ")]
    for row in re.findall(r"<tr>(.*?)</tr>", section)[1:]:
        cells = [cell.split() for cell in re.findall(r"<td(?: class=\"([^\"]*)\")?>", row)]
        assert ["words" in cell for cell in cells] == [True, *[False] * 4, True]


def test_a_few_runs_are_ranked_on_request_only(factory, tmp_path):
    for name, scores in (("x", [1.0, 0.0] * 30), ("y", [1.0, 1.0] * 30)):
        factory.write_run(tmp_path / name, {"t": scores})
    runs = find_runs([str(tmp_path / name) for name in ("x", "y")])
    assert compare(runs).leaderboard is None
    comparison = compare(runs, CompareOptions(leaderboard=True))
    best, last = comparison.leaderboard.places
    assert (best.run, best.rank, last.rank) == ("y", 1, 2)
    assert (best.family, best.needs, best.time_ratio) == ("other runs", "", None)
    row = comparison.rows[0].scores  # the interval of a single task is that of its row
    assert (best.score, last.score) == (row["y"], row["x"])
    (table,) = leaderboard_tables(comparison)
    assert table.rows[0][-2:] == ["–", "–"]


def test_tasks_and_items_that_not_all_runs_have_are_left_out(factory, tmp_path):
    one, more = [1.0, 0.0] * 10, [1.0, 0.0] * 10 + [1.0]
    factory.write_run(tmp_path / "x", {"a": more, "b": one, "lonely": one})
    factory.write_run(tmp_path / "y", {"a": one, "b": one})
    runs = find_runs([str(tmp_path / name) for name in ("x", "y")])
    board = compare(runs, CompareOptions(leaderboard=True, force=True)).leaderboard
    assert board.tasks == ["a", "b"]
    assert [place.score.value for place in board.places] == [0.5, 0.5]
    assert board.places[0].score.n == 40
    assert board.notes == ["not in the mean: lonely", "only the items of all runs count in a"]


def test_runs_without_a_common_task_have_no_leaderboard(factory, tmp_path):
    factory.write_run(tmp_path / "x", {"a": [1.0, 0.0]})
    factory.write_run(tmp_path / "y", {"b": [1.0, 0.0]})
    runs = find_runs([str(tmp_path / name) for name in ("x", "y")])
    assert compare(runs, CompareOptions(leaderboard=True), alone=True).leaderboard is None


def test_weights_are_those_of_the_group_that_averages_the_tasks(factory, tmp_path):
    tasks = {"a": [1.0] * 30 + [0.0] * 10, "b": [0.0, 1.0, 0.0, 0.0]}
    for weighted, mean in ((True, 31 / 44), (False, 0.5)):
        folders = [tmp_path / f"{name}{weighted}" for name in "xy"]
        for folder in folders:
            factory.write_run(folder, tasks, groups={"both": (["a", "b"], weighted)})
        comparison = compare(find_runs(map(str, folders)), CompareOptions(leaderboard=True))
        place = comparison.leaderboard.places[0]
        group = next(row for row in comparison.rows if row.kind == "group")
        assert place.score.value == pytest.approx(mean)
        assert place.score == group.scores[place.run]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"spent": 3}',
        '{"spent": {"seconds": 1.0}}',
        '{"spent": {"seconds": true, "distinct_tokens": 4}}',
        '{"spent": {"seconds": 1.0, "distinct_tokens": 0}}',
        '{"spent": {"seconds": NaN, "distinct_tokens": 4}}',
        '{"spent": {"seconds": -1.0, "distinct_tokens": 4}}',
    ],
)
def test_a_time_that_is_not_recorded_is_not_shown(factory, tmp_path, content):
    for name, family in (("base", "base"), ("arrow", "routers")):
        recorded = {"model": "gks_arrow", "gks_eval": {"family": family, "needs": "nothing"}}
        factory.write_run(tmp_path / name, {"t": [1.0, 0.0]}, change={"config": recorded})
    spent = '{"spent": {"seconds": 1.5, "distinct_tokens": 4}}'
    (tmp_path / "base" / "cell.json").write_text(spent, encoding="utf-8")
    (tmp_path / "arrow" / "cell.json").write_text(spent.replace("1.5", "3.0"), encoding="utf-8")
    runs = find_runs([str(tmp_path)])
    assert time_ratios(runs) == {"base": 1.0, "arrow": 2.0}
    (tmp_path / "arrow" / "cell.json").write_text(content, encoding="utf-8")
    assert time_ratios(runs) == {"base": 1.0}
    (tmp_path / "base" / "cell.json").write_text(content, encoding="utf-8")
    assert time_ratios(runs) == {}
