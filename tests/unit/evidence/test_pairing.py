"""Pairing by document and occurrence, and what makes two runs incomparable."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from gks_eval.evidence.measure import Changes, measure_group, measure_task
from gks_eval.evidence.pairing import comparability_faults, pair_items
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.samples import Item, read_samples


def _items(hashes: list[str], start: int = 0) -> list[Item]:
    seen: dict[str, int] = {}
    items = []
    for index, name in enumerate(hashes):
        items.append(
            Item(start + index, (name, seen.get(name, 0)), f"p{name}", f"t{name}", {"acc": 1.0})
        )
        seen[name] = seen.get(name, 0) + 1
    return items


def test_pairs_match_a_naive_loop_on_random_multisets():
    rng = random.Random(5)
    for _ in range(50):
        first = [rng.choice("abcdef") for _ in range(rng.randrange(12))]
        second = [rng.choice("abcdef") for _ in range(rng.randrange(12))]
        left = list(second)
        expected = 0
        for name in first:
            if name in left:
                left.remove(name)
                expected += 1
        pairing = pair_items(_items(first), _items(second))
        assert len(pairing.pairs) == expected
        assert pairing.only_first == len(first) - expected
        assert pairing.only_second == len(second) - expected
        assert all(a.key == b.key for a, b in pairing.pairs)


def test_real_runs_pair_completely(golden):
    runs = [one_run(str(golden / name)) for name in ("llama-0", "llama-1")]
    tasks = [run.tasks["ev_maths"] for run in runs]
    samples = [read_samples(task) for task in tasks]
    assert samples[0]
    assert samples[1]
    pairing = pair_items(samples[0].by_filter["none"], samples[1].by_filter["none"])
    assert (len(pairing.pairs), pairing.only_first, pairing.only_second) == (10, 0, 0)
    assert comparability_faults(*tasks, pairing) == []


def test_a_limited_run_is_found(golden):
    first, second = (one_run(str(golden / name)).tasks["ev_maths"] for name in ("llama-0", "dummy"))
    samples = [read_samples(task) for task in (first, second)]
    assert samples[0]
    assert samples[1]
    pairing = pair_items(samples[0].by_filter["none"], samples[1].by_filter["none"])
    assert len(pairing.pairs) == 5
    assert comparability_faults(first, second, pairing) == ["limited to 10 items against 5"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "2.0"}, "version 1.0 against 2.0"),
        ({"shots": 5}, "0 shots against 5"),
        ({"original": 11}, "a split of 10 items against 11"),
        ({"n": 9}, "limited to 10 items against 9"),
        ({"prompt_stamp": "x/"}, "another chat template or system instruction"),
    ],
)
def test_each_difference_is_said(golden, change, said):
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    assert comparability_faults(task, replace(task, **change), None) == [said]


@pytest.mark.parametrize(
    "key",
    [
        *("doc_to_text", "doc_to_choice", "doc_to_target", "description"),
        *("target_delimiter", "fewshot_delimiter"),
        *("dataset_name", "validation_split", "test_split"),
    ],
)
def test_without_samples_what_makes_a_prompt_is_compared(golden, key):
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    other = replace(task, config={**task.config, key: "other"})
    assert comparability_faults(task, other, None) == [f"another {key}"]


def test_functions_dumped_with_an_address_are_not_compared(golden):
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    first = replace(task, config={"doc_to_text": "<function f at 0x1>"})
    second = replace(task, config={"doc_to_text": "<function f at 0x2>"})
    assert comparability_faults(first, second, None) == []
    text = replace(task, config={"doc_to_text": "{{question}}"})
    for pair in ((first, text), (text, first)):
        assert comparability_faults(*pair, None) == ["another doc_to_text"]


def test_other_prompts_and_answers_are_counted(golden):
    first = _items(["a", "b"])
    second = [replace(first[0], prompt_hash="x"), replace(first[1], target_hash="x")]
    pairing = pair_items(first, second)
    assert (pairing.other_prompt, pairing.other_target) == (1, 1)
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    assert comparability_faults(task, task, pairing) == [
        "other prompts in 1 of 2 pairs",
        "other gold answers in 1 of 2 pairs",
    ]


def test_changes_by_hand():
    items = _items(["a", "b", "c", "d"])
    values = np.array([0.25, 0.0, -0.5, -0.125])
    changes = Changes(values, False, pair_items(items, items), values)
    assert (changes.n, changes.gains, changes.losses) == (4, 1, 2)
    measured = measure_task(changes)
    assert (measured.change, measured.n) == (-0.09375, 4)
    assert (measured.gains, measured.losses) == (1, 2)
    assert changes.changed() == [(items[0], True), (items[2], False), (items[3], False)]


def test_runs_without_a_common_item_are_found(golden):
    task = one_run(str(golden / "llama-0")).tasks["ev_maths"]
    pairing = pair_items(_items(["a"]), _items(["b"]))
    assert comparability_faults(task, task, pairing) == ["no item in common"]


def test_a_group_is_binary_only_if_all_its_tasks_are():
    items = _items(["a", "b", "c", "d"])
    pairing, values = pair_items(items, items), np.array([1.0, 0.0, -1.0, 1.0])
    tasks = {name: Changes(values, name == "x", pairing, values) for name in ("x", "y")}
    assert measure_group({"x": tasks["x"]}, weighted=False).binary
    assert not measure_group(tasks, weighted=False).binary
    assert not measure_group({"y": tasks["y"], "x": tasks["x"]}, weighted=False).binary
