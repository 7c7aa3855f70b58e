"""How sure runs are of the gold choice: by hand, and next to accuracy, never instead."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gks_eval.evidence.clusters import with_clusters
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.confidence import gold_of
from gks_eval.evidence.report.build import build_page
from gks_eval.evidence.runs import Run, one_run
from gks_eval.evidence.tables.content import shift_tables

CHOICES = ("a", "längst", "long words")
LENGTHS = {
    "acc": (1, 1, 1),
    "acc_norm": (1, 6, 10),
    "acc_bytes": (1, 7, 10),
    "acc_token_norm": (1, 3, 2),
}
N = 200


def _rows(factory: Any, scores: np.ndarray, metric: str) -> list[dict[str, Any]]:
    rows = []
    for i, own in enumerate(scores):
        gold = i % 3
        right = float(int(np.argmax(own / LENGTHS[metric])) == gold)
        row = factory.sample(i, right, metric=metric, choices=CHOICES, answer=gold)
        tokens = LENGTHS["acc_token_norm"]
        row["resps"] = [[[str(x), "False", n]] for x, n in zip(own, tokens, strict=True)]
        row["filtered_resps"] = [[str(x), "False"] for x in own]
        row["doc"]["passage"] = i // 2
        rows.append(row)
    return rows


def _scores(seed: int) -> np.ndarray:
    return -np.random.default_rng(seed).gamma(3.0, 2.0, (N, 3))


def _pair(factory: Any, root: Path, both: tuple[np.ndarray, np.ndarray], metric: str) -> list[Run]:
    for name, scores in zip(("old", "new"), both, strict=True):
        factory.write_run(root / name, {"t": _rows(factory, scores, metric)}, metric=metric)
    return [one_run(str(root / name)) for name in ("old", "new")]


def _expected(scores: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    margins, shares = [], []
    for i, own in enumerate(scores):
        x = own / LENGTHS[metric]
        gold = i % 3
        margins.append(x[gold] - max(x[j] for j in range(3) if j != gold))
        shares.append(math.exp(x[gold]) / sum(map(math.exp, x)))
    return np.array(margins), np.array(shares)


def _shifts(runs: list[Run], **more: Any) -> Comparison:
    return compare(runs, CompareOptions(shift=True, **more))


@pytest.mark.parametrize("metric", LENGTHS)
def test_margin_and_probability_by_hand(factory, tmp_path, metric):
    both = _scores(0), _scores(1)
    runs = _pair(factory, tmp_path, both, metric)
    (shift,) = _shifts(runs).shifts
    for part, old, new in zip(
        ("margin", "probability"), *(_expected(scores, metric) for scores in both), strict=True
    ):
        changes = new - old
        assert getattr(shift, part) == pytest.approx(changes.mean())
        z = changes.sum() / math.sqrt((changes**2).sum())
        assert getattr(shift, f"{part}_p") == pytest.approx(2 * stats.norm.sf(abs(z)))
        low, high = getattr(shift, f"{part}_low"), getattr(shift, f"{part}_high")
        expected = stats.ttest_1samp(changes, 0).confidence_interval()
        assert (low, high) == pytest.approx(tuple(expected), rel=0.1, abs=0.01)
    (row,) = compare(runs).rows
    assert (shift.n, shift.accuracy) == (N, row.differences[0].difference)


def test_scaling_shifts_the_margin_and_no_accuracy(factory, tmp_path):
    scores = _scores(0)
    scores[np.arange(N), np.arange(N) % 3] += 4.0  # right more often than not
    (shift,) = _shifts(_pair(factory, tmp_path, (scores, 1.1 * scores), "acc")).shifts
    assert shift.accuracy == 0.0
    assert shift.margin > 0.0
    assert shift.margin_p < 0.001


def test_linked_items_count_as_one_cluster(factory, tmp_path):
    both = _scores(0), _scores(1)
    runs = with_clusters(_pair(factory, tmp_path, both, "acc"), "passage")
    (shift,) = _shifts(runs).shifts
    changes = (_expected(both[1], "acc")[0] - _expected(both[0], "acc")[0]).reshape(-1, 2).sum(1)
    z = changes.sum() / math.sqrt((changes**2).sum())
    assert shift.margin_p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_a_gold_choice_that_does_not_give_the_score_is_not_used(factory, tmp_path):
    rows = _rows(factory, _scores(0), "acc")
    for row in rows:
        row["target"] = str((int(row["target"]) + 1) % 3)
    for name in ("old", "new"):
        factory.write_run(tmp_path / name, {"t": rows})
    runs = [one_run(str(tmp_path / name)) for name in ("old", "new")]
    assert gold_of(runs[0].tasks["t"], "acc,none") == {}
    assert _shifts(runs).shifts == []


@pytest.mark.parametrize(
    "broken",
    [
        {"filtered_resps": "text"},
        {"filtered_resps": [["-1.0", "False"]]},
        {"filtered_resps": [["x", "False"]] * 3},
        {"filtered_resps": [["-inf", "False"], ["-1.0", "False"], ["-1.0", "False"]]},
        {"arguments": None},
        {"target": "unknown"},
    ],
)
def test_items_that_cannot_be_read_are_left_out(factory, tmp_path, broken):
    rows = _rows(factory, _scores(0), "acc")
    rows[4] |= broken
    factory.write_run(tmp_path / "old", {"t": rows})
    assert len(gold_of(one_run(str(tmp_path / "old")).tasks["t"], "acc,none")) == N - 1


def test_the_target_may_be_the_choice_s_text(factory, tmp_path):
    rows = _rows(factory, _scores(0), "acc")
    for row in rows:
        row["target"] = f" {CHOICES[int(row['target'])]}"
    factory.write_run(tmp_path / "old", {"t": rows})
    found = gold_of(one_run(str(tmp_path / "old")).tasks["t"], "acc,none")
    assert [gold.margin for gold in found.values()] == pytest.approx(
        _expected(_scores(0), "acc")[0]
    )


def test_other_metrics_and_no_request_give_no_table(factory, tmp_path):
    runs = _pair(factory, tmp_path, (_scores(0), _scores(1)), "acc")
    assert shift_tables(compare(runs)) == []
    (table,) = shift_tables(_shifts(runs))
    assert table.rows[0][:2] == ["t", "new"]
    assert len(table.rows[0]) == len(table.columns)
    assert "[–]" not in table.notes[0]
    for name in ("x", "y"):
        factory.write_run(tmp_path / name, {"a": [1.0, 0.0] * 9}, metric="exact_match")
    assert _shifts([one_run(str(tmp_path / name)) for name in ("x", "y")]).shifts == []


def test_an_interval_that_does_not_exist_is_explained(factory, tmp_path):
    for name, seed in (("old", 0), ("new", 1)):
        factory.write_run(tmp_path / name, {"t": _rows(factory, _scores(seed)[:8], "acc")})
    (table,) = shift_tables(_shifts([one_run(str(tmp_path / n)) for n in ("old", "new")]))
    assert "[–]" in table.rows[0]
    assert "[–]: fewer than 10 items" in table.notes[0]


def test_real_files_of_lm_eval_are_read():
    golden = Path(__file__).parents[2] / "golden" / "evidence"
    runs = [one_run(str(golden / name)) for name in ("llama-0", "llama-1")]
    found = _shifts(runs).shifts
    assert {shift.name for shift in found} >= {"ev_birds"}
    assert json.loads(_shifts(runs).to_json())["shifts"]


def test_the_page_shows_the_table(factory, tmp_path):
    runs = _pair(factory, tmp_path, (_scores(0), _scores(1)), "acc")
    page = build_page(runs, [])
    assert "Confidence in the gold choice, change from old" in page
