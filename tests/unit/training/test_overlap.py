"""Overlap of training rows with items, against naive loops and planted copies."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import save_two_expert_recipe

from gks_eval.cli.main import main
from gks_eval.evidence.overlap import find_overlaps
from gks_eval.tasklib.item_words import ItemWords, item_words, without_frame, words_of
from gks_eval.training.jobs import make_plan
from gks_eval.training.overlap import overlap_record, training_texts


def contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(words)} "


@pytest.mark.parametrize("n", [2, 5, 7])
def test_the_shares_are_those_of_naive_loops(n: int) -> None:
    draw = random.Random(n)

    def words(most: int) -> tuple[str, ...]:
        return tuple(draw.choice("abc") for _ in range(draw.randint(0, most)))

    items = {
        task: [
            ItemWords(question := words(9), ((*question, *words(3)), (*question, *words(3))))
            for _ in range(60)
        ]
        for task in ("one", "two")
    }
    texts = {name: [" ".join(words(25)) for _ in range(6)] for name in ("experts/x", "general/y")}
    found = overlap_record(items, texts, n)
    for task, group in items.items():
        hits: dict[str, list[set[int]]] = {}
        for name, rows in texts.items():
            grams = {
                i
                for i, item in enumerate(group)
                for text in item.texts
                for at in range(len(text) - n + 1)
                if any(contains(words_of(row), text[at : at + n]) for row in rows)
            }
            questions = {
                i
                for i, item in enumerate(group)
                if len(item.question) >= 5
                and any(contains(words_of(row), item.question) for row in rows)
            }
            hits[name] = [grams, questions]
            counts = {"ngram": len(grams), "question": len(questions)}
            assert found[task]["adapters"][name] == counts
        for kind, key in enumerate(("ngram", "question")):
            union = hits["experts/x"][kind] | hits["general/y"][kind]
            assert found[task][key] == len(union) / 60
        assert found[task]["short"] == sum(
            max(len(text) for text in item.texts) < n for item in group
        )
    assert 0 < found["one"]["ngram"] <= 1
    if n == 5:
        assert found["one"]["question"] > 0


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words_of("Don't  STOP: «l’été», 3.5_x!\n") == ("dont", "stop", "lété", "35x")


def test_what_all_questions_share_is_the_prompt() -> None:
    asked = [words_of(f"Question: {text}\nAnswer:") for text in ("Who ran?", "Who sat down?")]
    assert without_frame(asked) == [("ran",), ("sat", "down")]
    assert without_frame(asked[:1] * 2) == asked[:1] * 2
    assert without_frame([("a", "b"), ("a", "b", "b")]) == [("a", "b"), ("a", "b", "b")]


def test_items_of_each_kind_of_task() -> None:
    def task(choices: object, text: object, target: object) -> SimpleNamespace:
        return SimpleNamespace(
            eval_docs=[{"q": "One two?"}, {"q": "Three four?"}, {"q": "Five"}],
            config=SimpleNamespace(doc_to_choice=choices),
            doc_to_text=lambda doc: text or f"Q: {doc['q']}",
            doc_to_choice=lambda _: choices,
            doc_to_target=lambda _: target,
        )

    chosen = item_words(task(["Yes.", "No."], None, 0), 2)
    assert chosen == [
        ItemWords(("one", "two"), (("one", "two", "yes"), ("one", "two", "no"))),
        ItemWords(("three", "four"), (("three", "four", "yes"), ("three", "four", "no"))),
    ]
    written = item_words(task(None, None, ["a", "b"]), 1)
    assert written == [ItemWords(("q", "one", "two"), (("q", "one", "two", "a", "b"),))]
    contexts = item_words(task(["He ran", "She ran"], 1, "away."), 1)
    assert contexts == [
        ItemWords(("he", "ran", "she", "ran"), (("he", "ran", "she", "ran", "away"),))
    ]


ITEM = {
    "question": "To make ice cubes with a mint leaf in the middle",
    "choice": "Put the leaves in the tray with the water, then freeze it.",
}


def test_a_planted_copy_is_found_by_the_command(
    tiny_base: Callable[[str], Path],
    tiny_library: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = tmp_path / "library", tmp_path / "overlap.json"
    shutil.copytree(tiny_library("phi3", experts=("one", "two")), folder)
    recipe = save_two_expert_recipe(folder, tiny_base("phi3"), rows=5, dropout=0.0)
    copied = {"source": "Task: " + ITEM["question"].upper() + "!", "target": ITEM["choice"]}
    (folder / "copied.jsonl").write_text(json.dumps(copied) + "\n", "utf-8")
    text = recipe.read_text("utf-8")
    before, _, after = text.rpartition("rows.jsonl")  # of expert two
    recipe.write_text(f"{before}copied.jsonl{after}", "utf-8")
    command = ["library", "overlap", str(folder), "--tasks", "gks_demo_goals_en"]
    monkeypatch.setattr(sys, "argv", ["gks-eval", *command, "--limit", "4", "-o", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().out
    assert not ended.value.code, printed
    assert "experts/two" in printed
    (found,) = find_overlaps(tmp_path)  # as the report reads it
    assert found.library == str(folder)
    task = found.tasks["gks_demo_goals_en"]
    assert (task.items, task.ngram, task.question) == (4, 0.25, 0.25)
    assert task.adapters["experts/two"] == {"ngram": 1, "question": 1}
    assert task.adapters["experts/one"] == {"ngram": 0, "question": 0}


def test_held_out_rows_are_no_training_rows(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = save_two_expert_recipe(tmp_path, tiny_base("phi3"), rows=7, dropout=0.0)
    plan = make_plan(recipe)
    assert len(list(training_texts(plan, plan.jobs[0]))) == 7
    recipe.write_text(recipe.read_text("utf-8").replace("experts:", "experts:\n  held_out: 3", 1))
    plan = make_plan(recipe)
    assert len(list(training_texts(plan, plan.jobs[0]))) == 4
