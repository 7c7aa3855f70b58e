from __future__ import annotations

import pytest

from gks_eval.tasklib.bbh import (
    CHOICE_SUBTASKS,
    OPEN_SUBTASKS,
    answer_options,
    bbh_choices,
    bbh_option_texts,
)


def test_23_and_4_subtasks() -> None:
    assert len(CHOICE_SUBTASKS) == len(set(CHOICE_SUBTASKS)) == 23
    assert len(OPEN_SUBTASKS) == 4
    assert not set(CHOICE_SUBTASKS) & set(OPEN_SUBTASKS)


@pytest.mark.parametrize(
    ("subtask", "options"),
    [
        ("boolean_expressions", ["True", "False"]),
        ("causal_judgement", ["Yes", "No"]),
        ("formal_fallacies", ["valid", "invalid"]),
        ("navigate", ["Yes", "No"]),
        ("sports_understanding", ["yes", "no"]),
        ("web_of_lies", ["Yes", "No"]),
    ],
)
def test_fixed_words(subtask: str, options: list[str]) -> None:
    assert answer_options(subtask, "whatever (A) the input says") == options
    assert bbh_option_texts({"subtask": subtask, "input": ""}) == options


def test_letters_are_those_below_options() -> None:
    text = "(A) is a hint, and so is:\n(C) not it\nOptions:\n(A) one\n(B) two (D)\n(C) one"
    assert answer_options("snarks", text) == ["(A)", "(B)", "(C)"]
    row = {"subtask": "snarks", "input": text}
    assert bbh_choices(row) == ["(A)", "(B)", "(C)"]
    assert bbh_option_texts(row) == [" one", " two (D)", " one"]


def test_eighteen_letters() -> None:
    letters = "ABCDEFGHIJKLMNOPQR"
    text = "How many?\nOptions:\n" + "\n".join(f"({letter}) {letter}" for letter in letters)
    expected = [f"({letter})" for letter in letters]
    assert answer_options("reasoning_about_colored_objects", text) == expected


def test_no_list_no_options() -> None:
    assert answer_options("ruin_names", "Which one?") == []


def test_open_subtasks_have_no_options() -> None:
    with pytest.raises(KeyError):
        answer_options("word_sorting", "")
