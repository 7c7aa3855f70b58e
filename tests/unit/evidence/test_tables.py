"""Tables as text: marks, escapes, and what a spreadsheet or terminal could take for a command."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from rich.console import Console

from gks_eval.evidence.compare import compare
from gks_eval.evidence.comparison import Comparison, Row, RunInfo, Score
from gks_eval.evidence.excerpts import excerpts
from gks_eval.evidence.overlap import Overlap
from gks_eval.evidence.runs import find_runs, one_run
from gks_eval.evidence.tables.content import best_two, difference_table, number, score_table
from gks_eval.evidence.tables.csv_file import to_csv
from gks_eval.evidence.tables.escape import csv_text, latex, markdown, plain
from gks_eval.evidence.tables.latex_table import to_latex
from gks_eval.evidence.tables.markdown import to_markdown
from gks_eval.evidence.tables.terminal import print_tables


def _comparison(values: dict[str, float], higher: bool | None = True) -> Comparison:
    scores = {
        label: Score(value=value, n=50, low=None, high=None, method="none")
        for label, value in values.items()
    }
    row = Row(
        kind="task",
        name="a_b",
        metric="acc,none",
        binary=True,
        higher_is_better=higher,
        scores=scores,
        differences=[],
    )
    runs = [
        RunInfo(label=label, folder="", files=[], model="hf", model_args="", info={})
        for label in values
    ]
    return Comparison(
        baseline=next(iter(values)),
        confidence=0.95,
        draws=99,
        seed=0,
        forced=False,
        runs=runs,
        rows=[row],
        flips=[],
        notes=[],
    )


def _overlap(library: str, ngram: float, question: float) -> Overlap:
    task = {"items": 50, "short": 0, "ngram": ngram, "question": question, "adapters": {}}
    made = {"schema": "gks_eval.overlap/1", "library": library, "n": 13, "tasks": {"a_b": task}}
    return Overlap.model_validate(made)


def test_overlap_is_a_column_next_to_the_scores():
    comparison = _comparison({"x": 0.5, "y": 0.6})
    rows = [*comparison.rows, comparison.rows[0].model_copy(update={"name": "other"})]
    comparison = comparison.model_copy(update={"rows": rows})
    plain_table = score_table(comparison)
    table = score_table(comparison, [_overlap("one", 0.26, 0.041), _overlap("two", 0, 1)])
    assert table.columns == ["task", "n", "metric", "overlap, one", "overlap, two", "x", "y"]
    assert [row[3:5] for row in table.rows] == [["26.0 / 4.1", "0.0 / 100.0"], ["–", "–"]]
    assert [row[:3] + row[5:] for row in table.rows] == plain_table.rows
    moved = {(row, column + 2): mark for (row, column), mark in plain_table.marks.items()}
    assert table.marks == moved
    assert moved[0, 6] == "best"
    assert "share 13 words in a row with a training row" in table.notes[0]


def test_best_and_second_are_marked_with_ties_as_shown():
    row = _comparison({"x": 0.50001, "y": 0.50002, "z": 0.4, "w": 0.3}).rows[0]
    assert best_two(row) == {"x": "best", "y": "best", "z": "second"}
    lower = _comparison({"x": 0.5, "y": 0.4}, higher=False).rows[0]
    assert best_two(lower) == {"y": "best", "x": "second"}
    assert best_two(_comparison({"x": 0.5, "y": 0.4}, higher=None).rows[0]) == {}
    assert best_two(_comparison({"x": 0.5, "y": 0.5}).rows[0]) == {}


def test_latex_is_laid_out_as_the_paper_s():
    text = to_latex(_comparison({"base": 0.5, "50%_{x}": 0.6}))
    assert r"base & \underline{50.00} \\" in text
    assert r"50\%\_\{x\} & \textbf{60.00} \\" in text
    assert r"$n$ & 50 \\" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_markdown_cells_cannot_break_the_table():
    text = to_markdown([score_table(_comparison({"a|b": 0.5, "<script>": 0.6}))])
    assert "a\\|b" in text
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r\n=1", "＝1"])
def test_formulas_stay_text_in_csv(text):
    assert csv_text(text).startswith("'")
    lines = list(csv.reader(io.StringIO(to_csv(_comparison({"b": 0.5, text: 0.6})))))
    assert lines[2][3] == csv_text(text)


def test_harmless_texts_and_numbers_are_left_alone_in_csv():
    assert csv_text("piqa") == "piqa"
    assert csv_text("") == ""


def test_control_characters_never_reach_a_terminal():
    out = io.StringIO()
    comparison = _comparison({"x\x1b[31m\x07": 0.5, "y\u202e": 0.6})
    print_tables([score_table(comparison)], Console(file=out, width=120))
    assert not set(out.getvalue()) & {"\x1b", "\x07", "\u202e"}
    assert "[31m" in out.getvalue()
    assert plain("a\nb\tc") == "a b c"


def test_escapes():
    assert latex("a_b & 5% ~ ^ \\") == (
        r"a\_b \& 5\% \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert markdown("[x](y)") == r"\[x\]\(y\)"
    assert markdown("$x$ | y") == r"\$x\$ \| y"
    assert latex("<a|b>") == r"\textless{}a\textbar{}b\textgreater{}"


def test_a_name_cannot_become_the_argument_of_a_latex_line_s_end():
    lines = to_latex(_comparison({"[1em]": 0.5, "*": 0.6})).splitlines()
    assert not [line for line in lines if line.startswith(("[", "*"))]


def test_numbers():
    assert number(0.12345, True) == "12.35"
    assert number(-0.1, True, signed=True) == "-10.00"
    assert number(12.34567, False) == "12.35"
    assert number(None, True) == "–"
    assert number(-1e-18, True, signed=True) == number(-0.0, True, signed=True) == "+0.00"
    assert number(-0.0, False) == "0"


def test_excerpts_are_the_ends_of_prompts(golden):
    run = one_run(str(golden / "llama-0"))
    found = excerpts(run, [("ev_maths", 0), ("ev_birds", 5), ("nowhere", 1)], length=20)
    assert found[("ev_maths", 0)] == "…s 1 plus 2? Answer:"
    assert set(found) == {("ev_maths", 0), ("ev_birds", 5)}


def test_a_narrow_terminal_gets_a_line_a_run_that_loses_nothing():
    values = {f"run-number-{i}": 0.5 + i / 100 for i in range(7)}
    comparison = _comparison(values)
    for width in (50, 80, 200):
        out = io.StringIO()
        print_tables([score_table(comparison)], Console(file=out, width=width))
        text = out.getvalue()
        assert all(label in text for label in values)
        assert all(f"{100 * value:.2f}" in text for value in values.values())
        assert max(map(len, text.splitlines())) <= width
        assert ("task / run" in text) == (width < 200)
        assert "(continued)" not in text


@pytest.fixture
def five(factory, tmp_path) -> Comparison:
    """Five settings next to a base, with names as a grid gives them."""
    rng = np.random.default_rng(0)
    tasks = ["gks_piqa", "gks_bbh_logical_deduction_three_objects"]
    slugs = ["arrow", "gks-en", "gks-avg_rule-delta", "gks-avg_rule-delta_combine-outputs", "short"]
    for slug in ("base", *slugs):
        scores = {task: list((rng.random(200) < 0.6).astype(float)) for task in tasks}
        factory.write_run(tmp_path / slug, scores, groups={"g": (tasks, False)})
    return compare(find_runs([str(tmp_path)]))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_comparison_stands_on_one_row_whatever_the_width(five, width):
    out = io.StringIO()
    print_tables([difference_table(five)], Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for row in five.rows:
        for d in row.differences:
            shown = (
                number(d.difference, True, signed=True),
                f"[{number(d.low, True, signed=True)}, {number(d.high, True, signed=True)}]",
                f"{d.p:.4f}",
                f" {d.n}",
            )
            assert any(
                d.candidate in line and all(s in f"{line} " for s in shown) for line in lines
            )
    said = " ".join(out.getvalue().split())
    assert ("Left out at this width" in said) == (width <= 100)
    # A column is explained exactly if it is there.
    heads = next(line for line in lines if "interval" in line)
    for name, text in (("+/−", "items that only the run"), ("detectable", "80% power")):
        assert (name in heads) == (f"{name}: " in said) == (text in said)


def test_a_long_label_wraps_and_its_numbers_stay_on_one_row(five):
    long = f"org__model@{'x' * 60}"
    text = five.model_dump_json().replace('"short"', f'"{long}"')
    out = io.StringIO()
    comparison = Comparison.model_validate_json(text.replace('"schema_"', '"schema"'))
    print_tables([difference_table(comparison)], Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    d = next(d for d in comparison.rows[0].differences if d.candidate == long)
    (line,) = (x for x in lines if f"{d.p:.4f}" in x and "org__model" in x)
    assert number(d.difference, True, signed=True) in line
