"""The rows of the full size, dry-run on the CPU in a tiny size."""

from __future__ import annotations

import statistics

import pytest
import torch
from fake_cuda import need_static_cache

from benchmarks.bars import bars_of
from benchmarks.capture import captured
from benchmarks.full_model import full_model_rows
from benchmarks.request import BenchmarkRequest
from benchmarks.sizes import FULL, QUICK
from benchmarks.table_one import DISTINCT_PER_ITEM, items_of_table, texts_like_table
from benchmarks.tables.models import full_evaluations, full_forwards
from gks_eval.scoring.tree import count_distinct_tokens, to_sequences


@pytest.mark.filterwarnings("default")
def test_both_kinds_of_weights_are_measured_in_every_phase() -> None:
    need_static_cache()
    said: list[str] = []
    rows = full_model_rows(QUICK, rounds=1, device="cpu", seed=0, report=said.append)
    assert [row.weights for row in rows] == ["bfloat16", "nf4"]
    for row in rows:
        phases = [forward.phase for forward in row.forwards]
        assert phases == ["prefill", "prefill", "decode", "decode, captured"]
        assert all({*forward.seconds} == {"base", "routed"} for forward in row.forwards)
        found = row.evaluation
        assert found.computed_tokens >= found.distinct_tokens > 0
        expected = found.table_settings * found.table_tokens / found.tokens_per_second / 60
        assert found.table_minutes == pytest.approx(expected)
        assert row.peak_bytes is None
    bars = bars_of(full=rows)
    assert [bar.wanted for bar in bars].count("at most 1.05") == 4
    assert [bar.wanted for bar in bars].count("at most 1.15") == 2
    assert full_forwards(rows).table.row_count == 8
    assert full_evaluations(rows).table.row_count == 2


def test_the_full_size_is_phi_3_mini_and_is_not_run_by_default() -> None:
    """3.8 billion parameters; layer by layer, embeddings and head, without norms."""
    size = FULL.full
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.intermediate
    total = size.layers * layer + 2 * size.vocabulary * size.hidden
    assert total == pytest.approx(3.82e9, rel=0.01)
    assert "full" not in BenchmarkRequest().rows
    assert BenchmarkRequest(layers=3).sizes().full.layers == 3


def test_the_table_is_the_papers() -> None:
    items, settings = items_of_table()
    assert sum(items.values()) == 1838 + 3270 + 20006 + 10042 + 570 + 299 + 1267 + 500 + 5511
    assert settings == 6
    assert {*items} == {*DISTINCT_PER_ITEM}


def test_random_texts_are_as_long_as_is_assumed() -> None:
    items, _ = items_of_table()
    texts = texts_like_table(2000, 32064, 1)
    assert texts == texts_like_table(2000, 32064, 1)
    distinct = count_distinct_tokens(to_sequences(texts, 512)) / 2000
    mean = sum(DISTINCT_PER_ITEM[name] * n for name, n in items.items()) / sum(items.values())
    assert distinct == pytest.approx(mean, rel=0.05)
    assert statistics.mean(len(first) for first, _ in texts) == 1


def test_on_a_cpu_a_call_is_not_captured() -> None:
    def call() -> torch.Tensor:
        return torch.ones(1)

    assert captured(call, "cpu") is call
