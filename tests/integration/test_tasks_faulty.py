"""Faulty items are dropped or told of, never silently scored."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from task_pack import HUB, evaluate, load


@pytest.fixture
def faulty_hub(data_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the invented rows with faults in piqa, openbookqa and m_mmlu."""
    copy = tmp_path / "hub"
    shutil.copytree(HUB, copy)
    monkeypatch.chdir(copy)

    def edit(path: str, *changes: tuple[str, str]) -> None:
        text = (copy / path).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (copy / path).write_text(text, encoding="utf-8")

    edit(
        "baber/piqa/plain_text/validation.jsonl",
        ("Freeze the wax, then lift it off.", ""),  # the first item: lm-eval looks at its choices
        ('pole star.", "label": 1', 'pole star.", "label": 2'),
        ("Use a flat plate.", "Use  a lidded flask."),
    )
    edit(
        "baber/piqa/plain_text/train.jsonl",
        ('ice cubes.", "label": 0', 'ice cubes.", "label": -1'),
    )
    edit("allenai/winogrande/winogrande_xl/validation.jsonl", ('"option1": "key"', '"option1": ""'))
    edit("alexandrainst/m_mmlu/de/val.jsonl", ('"answer": "B"', '"answer": "E"'))
    return copy


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_items_without_a_gold_answer_are_dropped_and_named(
    faulty_hub: Path, pack: TaskManager, caplog: pytest.LogCaptureFixture
) -> None:
    task = load(pack, ["gks_piqa"], num_fewshot=2)["tasks"]["gks_piqa"]
    task.build_all_requests()
    assert len(task.sampler.df) == 3
    few_shot = [r.message for r in caplog.records if "few-shot" in r.message]
    caplog.clear()
    results = evaluate(pack, ["gks_piqa", "gks_mmlu_de"], with_tokens=True)
    assert results["n-samples"]["gks_piqa"] == {"original": 3, "effective": 3}
    labels = [sample["doc"]["label"] for sample in results["samples"]["gks_piqa"]]
    assert labels == [0, 0, 0]
    assert len(results["samples"]["gks_mmlu_de"]) == 2
    told = [r.message for r in caplog.records if r.name == "gks_eval.tasklib.task"]
    outside = "with a gold answer outside the choices"
    assert few_shot == [f"gks_piqa, few-shot split: DROPPED 1 item {outside} (index 0)"]
    assert sorted(told) == [
        f"gks_mmlu_de, scored split: DROPPED 1 item {outside} (index 2)",
        f"gks_piqa, scored split: DROPPED 1 item {outside} (index 1)",
        "gks_piqa, scored split: kept 1 item with a duplicated option (index 2)",
        "gks_piqa, scored split: kept 1 item with an empty option (index 0)",
    ]


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_lint_finds_them_with_their_index(faulty_hub: Path) -> None:
    from gks_eval.tasklib.lint import lint_tasks

    found = lint_tasks(["gks_piqa", "gks_winogrande", "gks_mmlu_de", "gks_swag"])
    kinds = {
        lint.task: {i: [f.kind.name for f in faults] for i, faults in lint.faults.items()}
        for lint in found
    }
    assert kinds == {
        "gks_piqa": {0: ["EMPTY_OPTION"], 1: ["GOLD_OUTSIDE"], 2: ["DUPLICATED_OPTION"]},
        "gks_winogrande": {1: ["EMPTY_OPTION"]},
        "gks_mmlu_de": {2: ["GOLD_OUTSIDE"]},
        "gks_swag": {},
    }
    assert [lint.items for lint in found] == [4, 3, 3, 3]


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_invented_rows_have_no_faults(data_hub: Path) -> None:
    from gks_eval.tasklib.lint import lint_tasks

    counts: dict[str, int] = defaultdict(int)
    for lint in lint_tasks(
        ["gks_all", "gks_demo", "gks_bbh_subtasks", "gks_paper_english", "gks_peft"]
    ):
        assert not lint.faults, lint
        counts[lint.task] = lint.items
    assert counts["gks_bbh"] == counts["gks_paper_bbh"] == 46
