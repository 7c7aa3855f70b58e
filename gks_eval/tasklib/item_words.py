"""The words of items, as they are compared with training rows.

As in lm-eval's decontamination and GPT-3's appendix C: lower case, without punctuation, split at
white space. Letters and digits of every script are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Final

__all__ = ["ItemWords", "item_words", "without_frame", "words_of"]

_PUNCTUATION: Final = re.compile(r"[^\w\s]|_")
Words = tuple[str, ...]


@dataclass(frozen=True)
class ItemWords:
    """One item.

    Attributes:
        question: Its question, without the words that all questions of the task begin or end with.
        texts: The question with each of its options, or with the answer.
    """

    question: Words
    texts: tuple[Words, ...]


def words_of(text: str) -> Words:
    """Return the words of a text, in lower case and without punctuation."""
    return tuple(_PUNCTUATION.sub("", text.lower()).split())


def without_frame(questions: Sequence[Words]) -> list[Words]:
    """Strip the words that all questions begin with and those that all end with.

    They are the prompt's, as in ``Question: ... Answer:``. A question that is nothing else stays.
    """
    if len(set(questions)) < 2:
        return list(questions)
    start = _shared(questions)
    end = _shared([question[::-1] for question in questions])
    return [question[start : len(question) - end] or question for question in questions]


def item_words(task: Any, limit: int | None = None) -> list[ItemWords]:
    """Return the items of a loaded task, without few-shot examples.

    Args:
        task: Of lm-eval.
        limit: Maximum number of items, from the first.
    """
    questions: list[Words] = []
    answers: list[list[str]] = []
    for doc in islice(task.eval_docs, limit):
        text = task.doc_to_text(doc)
        chosen = task.config.doc_to_choice is not None
        options = [str(one) for one in task.doc_to_choice(doc)] if chosen else []
        if isinstance(text, str):
            questions.append(words_of(text))
            answers.append(options or [_target(task, doc)])
        else:  # the options are the contexts, as in Winogrande
            questions.append(words_of(" ".join(options)))
            answers.append([_target(task, doc)])
    return [
        ItemWords(question, tuple((*question, *words_of(answer)) for answer in given))
        for question, given in zip(without_frame(questions), answers, strict=True)
    ]


def _shared(rows: Sequence[Words]) -> int:
    """Return the number of words that all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _target(task: Any, doc: Any) -> str:
    target = task.doc_to_target(doc)
    return " ".join(map(str, target)) if isinstance(target, list) else str(target)
