"""BIG-Bench Hard: its subtasks and the answer options that an item offers.

Paper: Suzgun et al. 2022, https://arxiv.org/abs/2210.09261. The data have an input and a target
but no list of options, so the options are read from the input, by the kind of the subtask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["CHOICE_SUBTASKS", "OPEN_SUBTASKS", "answer_options", "bbh_choices", "bbh_option_texts"]

_TRUE_FALSE = ("True", "False")
_YES_NO_CAPITAL = ("Yes", "No")
_YES_NO = ("yes", "no")
_VALID_INVALID = ("valid", "invalid")

_WORDS: dict[str, tuple[str, ...]] = {
    "boolean_expressions": _TRUE_FALSE,
    "causal_judgement": _YES_NO_CAPITAL,
    "formal_fallacies": _VALID_INVALID,
    "navigate": _YES_NO_CAPITAL,
    "sports_understanding": _YES_NO,
    "web_of_lies": _YES_NO_CAPITAL,
}

_LETTERED = (
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
)

CHOICE_SUBTASKS: tuple[str, ...] = tuple(sorted((*_WORDS, *_LETTERED)))
"""The 23 subtasks that are scored as multiple choice."""

OPEN_SUBTASKS: tuple[str, ...] = (
    "dyck_languages",
    "multistep_arithmetic_two",
    "object_counting",
    "word_sorting",
)
"""The four whose answers are free text."""

_LETTERED_LINE = re.compile(r"^\(([A-Z])\)(.*)$", re.MULTILINE)


def answer_options(subtask: str, text: str) -> list[str]:
    """Return the options that an item offers, as its target would be written.

    Args:
        subtask: Name of the subtask.
        text: The item's input. Six subtasks have a fixed pair of words; the others list lettered
            options, one a line, below a line ``Options:``.

    Returns:
        For example ``["True", "False"]`` or ``["(A)", "(B)", "(C)"]``; empty when the input of a
        lettered subtask lists none.

    Raises:
        KeyError: For a subtask without options.
    """
    if subtask in _WORDS:
        return list(_WORDS[subtask])
    if subtask not in _LETTERED:
        raise KeyError(subtask)
    return [f"({letter})" for letter, _ in _listed(text)]


def _listed(text: str) -> list[tuple[str, str]]:
    # Letters before the list, in the passage itself, are not options.
    _, _, below = text.rpartition("Options:")
    return _LETTERED_LINE.findall(below)


def bbh_choices(doc: Mapping[str, Any]) -> list[str]:
    """Return the options of a row with the columns ``subtask`` and ``input``."""
    return answer_options(doc["subtask"], doc["input"])


def bbh_option_texts(doc: Mapping[str, Any]) -> list[str]:
    """For the lint: the texts behind the letters, or the fixed words."""
    if doc["subtask"] in _WORDS:
        return bbh_choices(doc)
    return [text for _, text in _listed(doc["input"])]
