"""Overlap of training rows with the items of tasks: shared n-grams, and whole questions.

Only the items are held in memory; rows are read one source at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gks_eval.tasklib.item_words import ItemWords, words_of
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.recipe import ExpertSection
from gks_eval.training.sources import expert_rows, general_texts

__all__ = ["SHORTEST_QUESTION", "ItemIndex", "overlap_record", "training_texts"]

SHORTEST_QUESTION: Final = 5
"""Fewest words of a question that is searched for; shorter ones match unrelated texts."""

Key = tuple[str, int]  # task and position


@dataclass
class ItemIndex:
    """The n-grams and questions of all items, by hash.

    Attributes:
        n: Words of an n-gram.
    """

    n: int
    _grams: dict[int, set[Key]] = field(default_factory=dict)
    _questions: dict[int, dict[int, list[tuple[Key, tuple[str, ...]]]]] = field(
        default_factory=dict
    )

    def add(self, key: Key, item: ItemWords) -> None:
        """Add one item."""
        for text in item.texts:
            for gram in _windows(text, self.n):
                self._grams.setdefault(hash(gram), set()).add(key)
        question = item.question
        if len(question) >= SHORTEST_QUESTION:
            start = question[: self.n]
            found = self._questions.setdefault(len(start), {})
            found.setdefault(hash(start), []).append((key, question))

    def find(self, words: tuple[str, ...]) -> tuple[set[Key], set[Key]]:
        """Return the items that share an n-gram with a text, and those whose question it holds."""
        grams: set[Key] = set()
        for gram in _windows(words, self.n):
            grams |= self._grams.get(hash(gram), set())
        questions = {
            key
            for length, starts in self._questions.items()
            for position, start in enumerate(_windows(words, length))
            for key, question in starts.get(hash(start), ())
            if words[position : position + len(question)] == question
        }
        return grams, questions


def training_texts(plan: TrainingPlan, job: Job) -> Iterator[str]:
    """Yield the texts that a job trains on; source and target of a row form one text.

    For a general adapter these are all its texts, though training may stop before the last.

    Raises:
        DataError: The data have a fault.
        HubError: The hub cannot be reached.
    """
    if isinstance(job.section, ExpertSection):
        rows = expert_rows(job, plan.root)
        for row in rows[: max(0, len(rows) - job.section.held_out)]:
            yield f"{row.source}\n{row.target}"
    else:
        yield from general_texts(job, plan.root)


def overlap_record(
    items: Mapping[str, Sequence[ItemWords]],
    texts: Mapping[str, Iterable[str]],
    n: int,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Compare the items of tasks with the training texts of adapters.

    Args:
        items: Items by task.
        texts: Training texts by adapter; read once.
        n: Words of an n-gram.
        advance: Called after each adapter.

    Returns:
        By task: `items`; `short`, those with no n-gram; `ngram` and `question`, the shares of items
        that share an n-gram with any text or whose question one holds; `adapters`, both as counts
        of items by adapter.
    """
    index = ItemIndex(n)
    for task, found in items.items():
        for position, item in enumerate(found):
            index.add((task, position), item)
    hits: dict[str, tuple[set[Key], set[Key]]] = {}
    for adapter, group in texts.items():
        grams: set[Key] = set()
        questions: set[Key] = set()
        for text in group:
            shared, asked = index.find(words_of(text))
            grams |= shared
            questions |= asked
        hits[adapter] = grams, questions
        advance()
    record = {}
    for task, found in items.items():
        every = [set().union(*(one[kind] for one in hits.values())) for kind in (0, 1)]
        ngram, question = (sum(name == task for name, _ in one) for one in every)
        record[task] = {
            "items": len(found),
            "short": sum(all(len(text) < n for text in item.texts) for item in found),
            "ngram": ngram / max(1, len(found)),
            "question": question / max(1, len(found)),
            "adapters": {
                adapter: {
                    "ngram": sum(name == task for name, _ in grams),
                    "question": sum(name == task for name, _ in questions),
                }
                for adapter, (grams, questions) in hits.items()
            },
        }
    return record


def _windows(words: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (words[i : i + length] for i in range(len(words) - length + 1))
