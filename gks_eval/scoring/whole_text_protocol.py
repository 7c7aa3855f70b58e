"""Two protocols as kinds of requests: the text of prompt and choice is tokenised as one.

An lm-eval Instance with the three arguments ``(prompt, continuation, {"protocol": NAME,
"max_tokens": N})`` asks for the text ``prompt + continuation``, truncated on the right to N tokens.

==================  ==================================================================
``whole_text``      the authors' protocol: all tokens except the first are scored
``choice_text``     PEFT's example: the tokens from the prompt's last one on are scored
==================  ==================================================================

The prompt's last token is the last of the prompt tokenised alone. The first token of a text is
never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gks_eval.errors import UsageError

__all__ = [
    "CHOICE_TEXT",
    "WHOLE_TEXT",
    "is_whole_text",
    "max_tokens",
    "scores_choice",
    "split_tokens",
]

WHOLE_TEXT: Final = "whole_text"
CHOICE_TEXT: Final = "choice_text"


def is_whole_text(arguments: Sequence[Any]) -> bool:
    """Return whether a request's prompt and continuation are tokenised as one text.

    Raises:
        UsageError: The arguments have a third item of another protocol.
    """
    if len(arguments) < 3:
        return False
    options = arguments[2]
    known = (WHOLE_TEXT, CHOICE_TEXT)
    if not isinstance(options, dict) or options.get("protocol") not in known:
        raise UsageError(f"a request asks for the unknown scoring protocol {options!r}.")
    return True


def scores_choice(arguments: Sequence[Any]) -> bool:
    """Return whether a request's tokens are scored only from the prompt's last one on."""
    return is_whole_text(arguments) and arguments[2]["protocol"] == CHOICE_TEXT


def max_tokens(arguments: Sequence[Any]) -> int:
    """Return the token limit of the request."""
    return int(arguments[2]["max_tokens"])


def split_tokens(
    tokens: list[int], limit: int, prompt_tokens: int = 0
) -> tuple[list[int], list[int]]:
    """Split a text's tokens into the unscored beginning and the scored rest.

    Args:
        tokens: The whole text, with a BOS only if the tokenizer adds one.
        limit: Number of tokens kept, from the left.
        prompt_tokens: Number of tokens of the prompt alone; all but its last are not scored. With
            0, only the first token of the text is not scored.
    """
    kept = tokens[:limit]
    start = max(1, prompt_tokens - 1)
    return kept[:start], kept[start:]
