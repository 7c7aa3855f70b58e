"""The rows of open-ended generation, in a tiny size and in this process."""

from __future__ import annotations

import torch

from benchmarks.bars import bars_of
from benchmarks.generation import generation_rows, prompts_of
from benchmarks.request import BenchmarkRequest
from benchmarks.sizes import QUICK
from benchmarks.subject import open_subject
from benchmarks.tables.evaluations import generation


def test_texts_are_generated_by_hf_and_by_ours() -> None:
    with open_subject(None, tiny=True, device="cpu", dtype=torch.float32, seed=0) as subject:
        rows = generation_rows(
            subject, QUICK, rounds=2, device="cpu", seed=0, report=lambda _: None
        )
    assert [row.kind for row in rows] == ["4 tokens", "until newline, . or )"]
    for row in rows:
        assert list(row.seconds) == ["hf", "router=none", "arrow", "gks:avg"]
        assert row.prompts == row.equal == 3
        assert row.over_hf["hf"].median_of_rounds == 1
        assert all(len(timing.rounds) == 2 for timing in row.seconds.values())
    assert generation(rows).table.row_count == 2
    slow = rows[0].model_copy(
        update={"over_hf": {"router=none": rows[0].over_hf["hf"]}, "equal": 2}
    )
    speed, equal = bars_of(generation=[slow])
    assert (speed.wanted, speed.met) == ("at most 1", True)
    assert (equal.measured, equal.met) == (2 / 3, False)


def test_prompts_differ_in_length_and_text() -> None:
    prompts = prompts_of(16)
    lengths = [len(prompt.split()) for prompt in prompts]
    assert lengths != sorted(lengths)
    assert len({*prompts}) == 16
    assert "generation" not in BenchmarkRequest().rows
