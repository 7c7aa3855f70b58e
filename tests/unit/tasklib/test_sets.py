from __future__ import annotations

import datasets
import pytest

from gks_eval.tasklib import sets


def test_arc_labels_may_be_digits() -> None:
    row = {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    assert sets.arc_choices(row) == ["x", "y", "z"]
    assert sets.arc_gold(row) == 2
    assert sets.arc_gold(row | {"answerKey": " 1"}) == 0
    assert sets.arc_gold(row | {"answerKey": "C"}) == -1
    assert sets.arc_gold(row | {"answerKey": ""}) == -1


def test_boolq_choices_are_true_then_false() -> None:
    assert [sets.boolq_gold({"answer": answer}) for answer in (True, False, None)] == [0, 1, -1]
    content = sets.boolq_content({"passage": "P.", "question": "q"})
    assert content == "[passage]P.[question]q"


def test_winogrande_parts() -> None:
    row = {"sentence": "A b _ c d. ", "option1": "X", "option2": "Y", "answer": "2"}
    assert sets.winogrande_contexts(row) == ["A b X", "A b Y"]
    assert sets.winogrande_ending(row) == "c d."
    assert sets.winogrande_gold(row) == 1
    assert sets.winogrande_gold(row | {"answer": ""}) == -1


def test_absent_options_shift_the_answer() -> None:
    row = {"option_a": "one", "option_b": None, "option_c": "three", "answer": "C"}
    assert sets.option_choices(row) == ["one", "three"]
    assert sets.letter_gold(row) == 1
    assert sets.letter_gold(row | {"answer": "B"}) == -1
    assert sets.letter_gold(row | {"answer": None}) == -1


def test_the_authors_read_four_options() -> None:
    row = {f"option_{letter}": letter * 2 for letter in "abcde"} | {"answer": "D"}
    assert sets.four_options(row) == ["aa", "bb", "cc", "dd"]
    assert sets.four_options_gold(row) == 3
    assert sets.four_options_gold(row | {"answer": "E"}) == -1  # dropped, with a warning
    assert sets.four_options(row | {"option_d": None}) == ["aa", "bb", "cc"]
    assert sets.four_options_gold(row | {"option_b": None, "answer": "C"}) == 1


def test_xnli() -> None:
    row = {"premise": "P", "hypothesis": "H"}
    assert sets.xnli_content(row) == "[premise]P[hypothesis]H[relationship]"
    assert sets.xnli_en_choices(row) == ["P, right? Yes, H", "P, right? Also, H", "P, right? No, H"]
    assert sets.xnli_de_choices(row)[2] == "P, richtig? Nein, H"
    assert sets.xnli_fr_choices(row)[1] == "P, correct? Aussi, H"


@pytest.mark.parametrize(("label", "gold"), [("2", 2), (" 0", 0), (3, 3), ("", -1), ("x", -1)])
def test_hellaswag_labels_are_text(label: object, gold: int) -> None:
    assert sets.paper_hellaswag_gold({"label": label}) == gold


def test_wikihow_marks_are_removed() -> None:
    rows = [
        {
            "activity_label": "Garden",
            "ctx_a": "[header] Prune [title] Choose. [step] Wait.",
            "ctx_b": None,
            "endings": ["[substeps] Cut  it.", " Wait."],
            "label": "1",
        }
    ]
    (row,) = sets.activity_docs(datasets.Dataset.from_list(rows))
    # By hand: strip, " [title]" -> ". ", brackets out, double spaces single, in this order.
    assert row["query"] == "Garden: Prune. Choose. Wait."
    assert row["choices"] == [" Cut it.", "Wait."]
    assert row["gold"] == 1
