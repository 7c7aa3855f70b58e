"""Texts -> windows of a fixed number of tokens, each a prompt and a completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gks_eval.training.examples import IGNORED, Example

__all__ = ["cut_first", "cut_packed", "window_example"]

Encode = Callable[[str], list[int]]


def cut_first(texts: Iterable[str], encode: Encode, length: int) -> Iterator[list[int]]:
    """Yield the first `length` tokens of each text, and an empty list for a text that is shorter.

    Args:
        texts: The documents.
        encode: Text to token ids, without special tokens.
        length: Tokens per window.
    """
    for text in texts:
        ids = encode(text)
        yield ids[:length] if len(ids) >= length else []


def cut_packed(
    texts: Iterable[str], encode: Encode, length: int, separator: int
) -> Iterator[list[int]]:
    """Yield windows of `length` tokens from all texts joined; the rest at the end is dropped.

    Args:
        texts: The documents.
        encode: Text to token ids, without special tokens.
        length: Tokens per window.
        separator: Token that ends each text.
    """
    held: list[int] = []
    for text in texts:
        held += [*encode(text), separator]
        while len(held) >= length:
            yield held[:length]
            held = held[length:]


def window_example(window: list[int], prompt: int, loss: str) -> Example:
    """Turn a window into an example: the first `prompt` tokens are the prompt.

    Args:
        window: Token ids.
        prompt: Number of tokens of the prompt.
        loss: ``completion`` scores the tokens after the prompt, ``all`` scores all tokens.
    """
    labels = window if loss == "all" else [IGNORED] * prompt + window[prompt:]
    return Example(tuple(window), tuple(labels))
