"""How each set's rows become choices, gold answers and, for the authors' protocol, contents.

A function takes one row in the hub's schema; the YAML files name it. What is missing or unknown in
a row becomes a gold answer of -1, which the task class reports and drops.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "activity_docs",
    "arc_choices",
    "arc_gold",
    "boolq_content",
    "boolq_gold",
    "four_options",
    "four_options_gold",
    "letter_gold",
    "mmlu_options",
    "okapi_arc_docs",
    "option_choices",
    "paper_hellaswag_gold",
    "piqa_choices",
    "swag_choices",
    "winogrande_contexts",
    "winogrande_ending",
    "winogrande_gold",
    "winogrande_options",
    "xnli_content",
    "xnli_de_choices",
    "xnli_en_choices",
    "xnli_fr_choices",
    "xnli_options",
]

Row = Mapping[str, Any]

_OUTSIDE = -1
_LETTERS = "ABCDE"
_BRACKETED = re.compile(r"\[.*?\]")


def piqa_choices(row: Row) -> list[str]:
    """PIQA: the two solutions."""
    return [row["sol1"], row["sol2"]]


def swag_choices(row: Row) -> list[str]:
    """SWAG: the four endings."""
    return [row[f"ending{i}"] for i in range(4)]


def arc_choices(row: Row) -> list[str]:
    """ARC and OpenBookQA: the texts of the options."""
    return list(row["choices"]["text"])


def arc_gold(row: Row) -> int:
    """ARC and OpenBookQA: position of the answer's label (letters, in some rows digits)."""
    labels = list(row["choices"]["label"])
    key = row["answerKey"].strip()
    return labels.index(key) if key in labels else _OUTSIDE


def boolq_content(row: Row) -> str:
    """BoolQ in the authors' protocol."""
    return f"[passage]{row['passage']}[question]{row['question']}"


def boolq_gold(row: Row) -> int:
    """BoolQ in the authors' protocol, whose choices are true, false in this order."""
    answer = row["answer"]
    return _OUTSIDE if answer is None else int(not answer)


def winogrande_options(row: Row) -> list[str]:
    """WinoGrande: the two candidates for the blank."""
    return [row["option1"], row["option2"]]


def winogrande_gold(row: Row) -> int:
    """WinoGrande: position of the right candidate; the answer column says 1 or 2."""
    return {"1": 0, "2": 1}.get(row["answer"], _OUTSIDE)


def winogrande_contexts(row: Row) -> list[str]:
    """WinoGrande by partial evaluation: the sentence up to the blank, with each candidate in it."""
    before, _, _ = row["sentence"].partition("_")
    return [before + option for option in winogrande_options(row)]


def winogrande_ending(row: Row) -> str:
    """WinoGrande by partial evaluation: what follows the blank, which is what is scored."""
    _, _, after = str(row["sentence"]).partition("_")
    return after.strip()


def _xnli_choices(row: Row, tag: str, words: tuple[str, str, str]) -> list[str]:
    return [f"{row['premise']}, {tag}? {word}, {row['hypothesis']}" for word in words]


def xnli_de_choices(row: Row) -> list[str]:
    """XNLI in German: entailment, neutral, contradiction, each as one sentence."""
    return _xnli_choices(row, "richtig", ("Ja", "Auch", "Nein"))


def xnli_en_choices(row: Row) -> list[str]:
    """XNLI in English: entailment, neutral, contradiction, each as one sentence."""
    return _xnli_choices(row, "right", ("Yes", "Also", "No"))


def xnli_fr_choices(row: Row) -> list[str]:
    """XNLI in French: entailment, neutral, contradiction, each as one sentence."""
    return _xnli_choices(row, "correct", ("Oui", "Aussi", "Non"))


def xnli_options(row: Row) -> list[str]:
    """XNLI, for the lint: the hypothesis, the only part of the choices that could be empty."""
    return [row["hypothesis"]]


def xnli_content(row: Row) -> str:
    """XNLI in the authors' protocol."""
    return f"[premise]{row['premise']}[hypothesis]{row['hypothesis']}[relationship]"


def option_choices(row: Row) -> list[str]:
    """The option texts of the translated ARC and MMLU; absent options are left out."""
    return [text for _, text in _options(row)]


def mmlu_options(row: Row) -> list[str]:
    """MMLU in translation, for the lint: the option texts, of which the choices are the letters."""
    return [row[f"option_{letter}"] or "" for letter in "abcd"]


def letter_gold(row: Row) -> int:
    """Position of the answer among `option_choices`."""
    letters = [letter for letter, _ in _options(row)]
    answer = row["answer"]
    return letters.index(answer) if answer in letters else _OUTSIDE


def four_options(row: Row) -> list[str]:
    """Options A to D, which are all that the authors' code reads of the translated ARC."""
    return [text for letter, text in _options(row) if letter != "E"]


def four_options_gold(row: Row) -> int:
    """Position of the answer among `four_options`; outside if it is E."""
    return _OUTSIDE if row["answer"] == "E" else letter_gold(row)


def _options(row: Row) -> list[tuple[str, str]]:
    pairs = [(letter, row.get(f"option_{letter.lower()}")) for letter in _LETTERS]
    return [(letter, text) for letter, text in pairs if text]


def _tidy(text: str) -> str:
    """Remove what the WikiHow part of HellaSwag leaves in its texts: ``[title]`` and the like."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETED.sub("", text).replace("  ", " ")


def _label(text: object) -> int:
    digits = str(text).strip()
    return int(digits) if digits.isdigit() else _OUTSIDE


def paper_hellaswag_gold(row: Row) -> int:
    """HellaSwag's label, which is written as text."""
    return _label(row["label"])


def activity_docs(dataset: Any) -> Any:
    """HellaSwag, in any language: add the columns query, choices and gold."""

    def read(row: Row) -> dict[str, Any]:
        context = f"{row['ctx_a'] or ''} {(row['ctx_b'] or '').capitalize()}"
        return {
            "query": _tidy(f"{row['activity_label']}: {context}"),
            "choices": [_tidy(ending) for ending in row["endings"]],
            "gold": _label(row["label"]),
        }

    return dataset.map(read)


def okapi_arc_docs(dataset: Any) -> Any:
    """ARC in translation: add the columns query, choices and gold."""

    def read(row: Row) -> dict[str, Any]:
        return {
            "query": f"Question: {_tidy(row['instruction'])}\nAnswer:",
            "choices": [_tidy(text) for text in option_choices(row)],
            "gold": letter_gold(row),
        }

    return dataset.map(read)
