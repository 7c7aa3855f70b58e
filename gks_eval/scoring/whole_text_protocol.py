"""The authors' protocol as a kind of request: the whole text is scored, including the prompt.

An lm-eval Instance with the three arguments ``(prompt, continuation, {"protocol": "whole_text",
"max_tokens": N})`` asks for the text ``prompt + continuation``, truncated on the right to N tokens.
Its first token is not scored, all others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gks_eval.errors import UsageError

__all__ = ["PROTOCOL", "is_whole_text", "max_tokens", "split_tokens"]

PROTOCOL: Final = "whole_text"


def is_whole_text(arguments: Sequence[Any]) -> bool:
    """Return whether a request's arguments ask for whole-text scoring.

    Raises:
        UsageError: They have a third item of another protocol.
    """
    if len(arguments) < 3:
        return False
    options = arguments[2]
    if not isinstance(options, dict) or options.get("protocol") != PROTOCOL:
        raise UsageError(f"a request asks for the unknown scoring protocol {options!r}.")
    return True


def max_tokens(arguments: Sequence[Any]) -> int:
    """Return the token limit of the request."""
    return int(arguments[2]["max_tokens"])


def split_tokens(tokens: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Split a text's tokens into the unscored first one and the scored rest.

    Args:
        tokens: The whole text, with a BOS only if the tokenizer adds one.
        limit: Number of tokens kept, from the left.
    """
    kept = tokens[:limit]
    return kept[:1], kept[1:]
