"""(source, target) pairs -> token ids and labels; this file alone decides what the loss counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from gks_eval.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "DataReport",
    "Example",
    "SourceTarget",
    "begin",
    "beginning_of",
    "chat_text",
    "encode_pair",
    "encode_pairs",
]

IGNORED = -100
"""The label that the loss ignores."""


class SourceTarget(NamedTuple):
    """One row of an expert's data.

    Attributes:
        number: Number of the row in its file or data set, from 1; blank lines do not count.
        source: The instruction.
        target: The answer.
    """

    number: int
    source: str
    target: str


@dataclass(frozen=True)
class Example:
    """Token ids of one row, and the labels: the id itself if it is scored, else `IGNORED`."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def scored(self) -> int:
        """Number of positions that the loss counts (the first token has no predecessor)."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class DataReport:
    """Counts of used, shortened and skipped rows; they go into the provenance.

    Attributes:
        rows: Rows or windows that are trained on.
        tokens: Number of their tokens.
        scored_tokens: The tokens that the loss counts.
        sources_cut: Rows that lost the end of their source to `max_tokens`.
        targets_too_long: Rows left out because the target alone exceeds `max_tokens`.
        texts_too_short: Texts that gave no window.
        first_too_long: Numbers of the first few rows of `targets_too_long`.
    """

    rows: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    sources_cut: int = 0
    targets_too_long: int = 0
    texts_too_short: int = 0
    first_too_long: list[int] = field(default_factory=list)

    def count(self, examples: Iterable[Example]) -> None:
        """Add examples to the counts."""
        for example in examples:
            self.rows += 1
            self.tokens += len(example.input_ids)
            self.scored_tokens += example.scored


def beginning_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer adds before a text, such as ``<bos>``.

    lm-eval encodes its requests with them.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], marked)]


def begin(example: Example, beginning: Sequence[int]) -> Example:
    """Put the beginning before an example, unscored; one that has begun already stays as it is.

    lm-eval adds nothing to a text that begins with ``<bos>``, for example from a chat template.

    Args:
        example: The example.
        beginning: As `beginning_of` returns it.
    """
    added = _missing(example.input_ids, beginning)
    return Example((*added, *example.input_ids), (*[IGNORED] * len(added), *example.labels))


def _missing(ids: Sequence[int], beginning: Sequence[int]) -> Sequence[int]:
    return () if list(ids[:1]) == list(beginning[:1]) else beginning


def chat_text(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> tuple[str, str]:
    """Return (prompt, completion) as the model's own chat template writes them.

    Raises:
        DataError: The tokenizer has no template, or one that rewrites the prompt once the answer
            is known.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; set `format: plain` in"
            " the recipe."
        )
    turns = [{"role": "user", "content": source}]
    prompt: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": target})
    text: Any = tokenizer.apply_chat_template(turns, tokenize=False)
    if not text.startswith(prompt):
        raise DataError(
            f"{tokenizer.name_or_path}: the chat template rewrites the prompt when an answer"
            " follows; set `format: plain` in the recipe."
        )
    return prompt, text[len(prompt) :]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    prompt: str,
    completion: str,
    *,
    beginning: Sequence[int],
    max_tokens: int,
    loss: str,
) -> tuple[Example | None, bool]:
    """Encode one row; a row that is too long loses the end of its source.

    Prompt and completion are encoded as one text, as the model will read them; a token belongs to
    the completion if it ends after the prompt's last character.

    Args:
        tokenizer: A fast tokenizer.
        source: The part of the prompt that may be shortened.
        prompt: The text before the completion.
        completion: The answer; never shortened.
        beginning: As `begin` takes it; it counts for the length.
        max_tokens: Maximum length of a row.
        loss: ``completion`` or ``all``.

    Returns:
        The example, or None if the rest exceeds `max_tokens`; and whether it was shortened.
    """
    encoded = tokenizer(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoded["input_ids"])
    spans: list[tuple[int, int]] = list(encoded["offset_mapping"])
    scored = [loss == "all" or end > len(prompt) for _, end in spans]
    excess = len(_missing(ids, beginning)) + len(ids) - max_tokens
    if excess > 0:
        # Chat templates may strip the source.
        start = prompt.rfind(source.strip())
        stop = start + len(source.strip())
        inside = [i for i, (a, b) in enumerate(spans) if start <= a and b <= stop and a < b]
        if start < 0 or len(inside) < excess:
            return None, False
        gone = set(inside[len(inside) - excess :])
        ids = [token for i, token in enumerate(ids) if i not in gone]
        scored = [flag for i, flag in enumerate(scored) if i not in gone]
    labels = [token if kept else IGNORED for token, kept in zip(ids, scored, strict=True)]
    return begin(Example(tuple(ids), tuple(labels)), beginning), excess > 0


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[SourceTarget],
    *,
    chat: bool,
    template: str,
    max_tokens: int,
    loss: str,
    report: DataReport,
) -> list[Example]:
    """Encode all rows; `report` counts shortened and skipped rows.

    Args:
        tokenizer: The base model's tokenizer.
        pairs: The rows.
        chat: Use the model's chat template; else `template`.
        template: Text of the prompt with ``{source}``; the target and the end-of-text token follow.
        max_tokens: Maximum length of a row.
        loss: ``completion`` or ``all``.
        report: Receives the counts.

    Raises:
        DataError: The chat template cannot be used.
    """
    beginning = beginning_of(tokenizer)
    examples: list[Example] = []
    for number, source, target in pairs:
        if chat:
            prompt, completion = chat_text(tokenizer, source, target)
        else:
            prompt = template.replace("{source}", source)
            completion = target + str(tokenizer.eos_token or "")
        example, cut = encode_pair(
            tokenizer,
            source,
            prompt,
            completion,
            beginning=beginning,
            max_tokens=max_tokens,
            loss=loss,
        )
        if example is None:
            report.targets_too_long += 1
            report.first_too_long = sorted([*report.first_too_long, number])[:5]
        else:
            report.sources_cut += cut
            examples.append(example)
    return examples
