"""The paper's tables: its data, what may be tested, and one's own runs beside them."""

from __future__ import annotations

import pytest

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.paper import inferred_n, load_paper, paper_n, side_by_side
from gks_eval.evidence.paper_plan import plan
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.stats.unpaired import proportion_difference
from gks_eval.evidence.tables.paper_text import paper_tables

PAPER = load_paper()
PHI3 = "pretrained=microsoft/Phi-3-mini-4k-instruct"


def test_every_table_is_whole():
    assert [len(t.rows) for t in PAPER.tables.values()] == [6, 6, 6, 4, 4, 4, 3]
    for table in PAPER.tables.values():
        assert all(len(row.values) == len(table.columns) for row in table.rows.values())
    assert PAPER.tables["phi3_english"].rows["gks_avg"].values[0] == 80.03
    assert PAPER.tables["phi2_french"].rows["gks_avg"].values[-1] == 25.00


def test_one_printed_average_contradicts_its_row():
    off = [
        (name, row, published.printed_avg, round(published.mean, 2))
        for name, table in PAPER.tables.items()
        for row, published in table.rows.items()
        if published.average_is_off
    ]
    assert off == [("phi2_english", "arrow", 65.15, 66.15)]
    cells = side_by_side(PAPER, ["phi2_english"], [])
    average = next(c for c in cells if (c.row, c.column) == ("arrow", "average"))
    assert average.paper == pytest.approx(66.15, abs=0.01)
    assert "printed as 65.15" in average.note
    text = str(paper_tables(PAPER, cells, "gks_paper")[0])
    assert "66.15*" in text


def test_n_is_known_only_where_every_value_can_be_a_count():
    table = PAPER.tables["phi3_english"]
    assert paper_n(table, "piqa") == 1838
    assert paper_n(table, "arc_challenge") == 299
    # 42.83% of 5,511 is no count: the published BBH is no plain share of the items.
    assert paper_n(table, "bbh") is None
    assert paper_n(PAPER.tables["phi2_english"], "arc_easy") is None
    assert paper_n(PAPER.tables["phi3_german"], "xnli_de") is None


def test_an_inferred_n_is_used_where_the_value_can_be_a_count():
    """By hand: 36.24% is 108 of 298, 48.58% is 583 of 1,200 truncated; 52.48% is none of 1,200."""
    german = PAPER.tables["phi3_german"]
    assert inferred_n(german, "base", "arc_challenge_de") == 298
    assert inferred_n(german, "arrow", "hellaswag_de") == 1200
    assert inferred_n(german, "base", "hellaswag_de") is None
    assert inferred_n(german, "base", "xnli_de") is None
    # A loop over all counts: how many values are k / n at two decimals, rounded or truncated?
    fits = {
        (name, column): sum(
            any(v in (round(100 * k / n, 2), int(1e4 * k / n) / 100) for k in range(n + 1))
            for row in table.rows.values()
            for v in [row.values[table.columns.index(column)]]
        )
        for name, table in PAPER.tables.items()
        for column, n in table.inferred.items()
    }
    assert fits == {
        ("phi3_german", "hellaswag_de"): 5, ("phi3_german", "arc_challenge_de"): 6,
        ("phi3_french", "hellaswag_fr"): 6, ("phi3_french", "arc_challenge_fr"): 6,
        ("phi2_english", "bbh"): 4, ("phi2_german", "xnli_de"): 4,
        ("phi2_french", "hellaswag_fr"): 4, ("phi2_french", "arc_challenge_fr"): 4,
        ("phi2_french", "xnli_fr"): 4,
    }  # fmt: skip


def test_a_cell_with_an_inferred_n_is_tested_and_marked(factory, tmp_path):
    runs = _runs(factory, tmp_path, 120, 298, "gks_paper_arc_challenge_de")
    cells = side_by_side(PAPER, ["phi3_german"], runs)
    cell = next(c for c in cells if c.ours is not None)
    assert (cell.paper, cell.paper_n, cell.inferred) == (42.62, 298, True)
    assert cell.p_holm == pytest.approx(proportion_difference(127, 298, 120, 298)[2])
    assert cell.verdict == "agrees"
    text = str(paper_tables(PAPER, cells, "gks_paper")[0])
    assert "~298" in text
    assert "~: inferred" in text
    assert not _piqa(side_by_side(PAPER, ["phi3_english"], [])).inferred


def _runs(factory, folder, right, n=1838, task="gks_paper_piqa", model=PHI3, label="gks-avg"):
    factory.write_run(folder / label, {task: [1.0] * right + [0.0] * (n - right)}, model_args=model)
    return find_runs([str(folder / label)])


def _piqa(cells, row="gks_avg"):
    return next(c for c in cells if (c.row, c.column) == (row, "piqa"))


@pytest.mark.parametrize(
    ("right", "verdict"), [(1471, "agrees"), (1300, "lower"), (1600, "higher")]
)
def test_a_cell_beside_the_paper_s(factory, tmp_path, right, verdict):
    cells = side_by_side(PAPER, ["phi3_english"], _runs(factory, tmp_path, right))
    cell = _piqa(cells)
    assert (cell.paper, cell.paper_n, cell.n, cell.run) == (80.03, 1838, 1838, "gks-avg")
    assert cell.ours == pytest.approx(100 * right / 1838)
    assert cell.verdict == verdict
    assert cell.p_holm == pytest.approx(proportion_difference(1471, 1838, right, 1838)[2])
    assert _piqa(cells, "base").ours is None


def test_no_verdict_without_the_paper_s_n_protocol_or_model(factory, tmp_path):
    german = _runs(factory, tmp_path / "a", 50, 100, "gks_paper_xnli_de")
    cell = next(c for c in side_by_side(PAPER, ["phi3_german"], german) if c.ours is not None)
    assert (cell.verdict, cell.p_holm, cell.note) == ("", None, "the paper's n is unknown")
    other = _runs(factory, tmp_path / "b", 900, model="pretrained=smollm2")
    assert _piqa(side_by_side(PAPER, ["phi3_english"], other)).note == (
        "another model than the table's"
    )
    usual = _runs(factory, tmp_path / "c", 900, task="gks_piqa")
    cell = _piqa(side_by_side(PAPER, ["phi3_english"], usual, "gks"))
    assert cell.verdict == ""
    assert "another protocol" in cell.note
    assert _piqa(side_by_side(PAPER, ["phi3_english"], usual)).ours is None


def test_peft_s_table_reads_its_own_tasks(factory, tmp_path):
    """ARC-C: 167 of 299 right, as PEFT's example prints (0.5585); the paper's table has no run."""
    right = {"gks_peft_arc_challenge": [1.0] * 167 + [0.0] * 132}
    factory.write_run(tmp_path / "peft_gks", right, model_args=PHI3)
    runs = find_runs([str(tmp_path / "peft_gks")])
    cells = side_by_side(PAPER, list(PAPER.tables), runs)
    (cell,) = [cell for cell in cells if cell.ours is not None]
    assert (cell.table, cell.row, cell.column) == ("phi3_peft", "peft_gks", "arc_challenge")
    assert (cell.paper, cell.paper_n, cell.verdict) == (55.85, 299, "agrees")
    assert cell.difference == pytest.approx(100 * 167 / 299 - 55.85)
    tables = paper_tables(PAPER, [c for c in cells if c.table == "phi3_peft"], "gks_paper")
    assert "ours: gks_peft_*" in tables[0].title
    assert "PEFT's repository" in tables[0].notes[-1]
    # Every value is a count out of the full split.
    peft = PAPER.tables["phi3_peft"]
    assert [paper_n(peft, column) for column in peft.columns] == list(peft.full_split.values())


def test_a_limited_run_says_so(factory, tmp_path):
    counts = {"n-samples": {"gks_paper_piqa": {"original": 1838, "effective": 60}}}
    factory.write_run(
        tmp_path / "base", {"gks_paper_piqa": [1.0] * 60}, model_args=PHI3, change=counts
    )
    cells = side_by_side(PAPER, ["phi3_english"], find_runs([str(tmp_path / "base")]))
    assert _piqa(cells, "base").note == "the first 60 of 1838 items"


def test_our_average_needs_every_column(factory, tmp_path):
    columns = PAPER.tables["phi3_english"].columns
    tasks = {f"gks_paper_{column}": [1.0] * 30 + [0.0] * 10 for column in columns}
    factory.write_run(tmp_path / "base", tasks, model_args=PHI3)
    factory.write_run(tmp_path / "arrow", {"gks_paper_piqa": [1.0, 0.0]}, model_args=PHI3)
    cells = side_by_side(PAPER, ["phi3_english"], find_runs([str(tmp_path)]))
    averages = {cell.row: cell for cell in cells if cell.column == "average"}
    assert averages["base"].ours == pytest.approx(75.0)
    assert averages["base"].n == 40 * 9
    # Nine means of 40 items: se = sqrt(9 * 0.75 * 0.25 / 39) / 9.
    assert averages["base"].high - 75.0 == pytest.approx(
        1.959964 * 100 * (9 * 0.1875 / 39) ** 0.5 / 9
    )
    assert averages["arrow"].ours is None


def test_runs_that_fit_no_row_are_refused(factory, tmp_path):
    with pytest.raises(ResultsError, match="named as a row"):
        side_by_side(PAPER, ["phi3_english"], _runs(factory, tmp_path, 10, label="mine"))


def test_the_plan_is_the_grid_s_command():
    text = plan("phi3_english", PAPER.tables["phi3_english"])
    assert (
        "gks-eval grid --library phi3-mini --settings base,arrow,gks:en,gks:de,gks:fr,gks:avg "
        "--tasks gks_paper_english --batch-size auto --output results/phi3_english"
    ) in text
    assert "43,303 x 6 settings" in text
    assert "estimated, not measured" in text
    assert all(plan(name, table) for name, table in PAPER.tables.items())


def test_the_plan_of_peft_s_table_names_its_settings_and_tasks():
    peft = PAPER.tables["phi3_peft"]
    assert plan("phi3_peft", peft).splitlines()[1] == (
        "gks-eval grid --library phi3-mini "
        "--settings 'base,peft_arrow=arrow;preset=peft,peft_gks=gks:avg;preset=peft' "
        "--tasks gks_peft --batch-size auto --output results/phi3_peft"
    )
    usual = plan("phi3_peft", peft, "gks")
    assert "--tasks gks_arc_challenge,gks_arc_easy,gks_winogrande,gks_boolq," in usual


def test_an_unknown_table_is_refused_with_the_near_name():
    with pytest.raises(UsageError, match="did you mean 'phi3_english'"):
        PAPER.named("phi3_englsh")
