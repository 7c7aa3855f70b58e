"""Requests that cannot be scored unchanged, named by task, item and text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gks_eval.errors import one_line
from gks_eval.scoring.whole_text_protocol import is_whole_text

__all__ = ["beyond_embeddings", "too_long", "warn_of", "without_context"]

logger = logging.getLogger(__name__)

NAMED = 3
SHOWN = 40

TokenPair = tuple[Sequence[int], Sequence[int]]


def too_long(requests: Sequence[Any], pairs: Sequence[TokenPair], max_length: int) -> str | None:
    """Return a sentence about the first continuation that is too long; None if there is none.

    Args:
        requests: lm-eval's requests.
        pairs: Their (context, continuation) tokens.
        max_length: Maximum number of input tokens.
    """
    for request, (_, text) in zip(requests, pairs, strict=True):
        if len(text) > max_length:
            return (
                f"{_item(request)}: the continuation has {len(text)} tokens, more than "
                f"max_length={max_length}; raise max_length, or leave the item out with --samples."
            )
    return None


def beyond_embeddings(
    requests: Sequence[Any], tokens: Sequence[Sequence[int]], rows: int
) -> str | None:
    """Return a sentence about the first token without an embedding; None if there is none.

    Resizing the embeddings would draw new rows, and the scores with them, at random.

    Args:
        requests: lm-eval's requests.
        tokens: The tokens of each.
        rows: Number of embeddings of the base.
    """
    for request, ids in zip(requests, tokens, strict=True):
        if (highest := max(ids, default=0)) >= rows:
            return (
                f"{_item(request)}: its token {highest} exceeds the base model's {rows} "
                "embeddings; use the tokenizer that the base was trained with, or a base whose "
                "embeddings were resized for this one."
            )
    return None


def without_context(requests: Sequence[Any]) -> str | None:
    """Return a sentence about the first request without a context; None if there is none.

    Args:
        requests: lm-eval's requests, of any kind.
    """
    why = "level=sequence chooses experts by a request's context, and"
    for request in requests:
        if request.request_type == "loglikelihood_rolling" or is_whole_text(request.args):
            return (
                f"{_item(request)}: {why} here the whole text is scored; use level=token, or a "
                "task that scores continuations."
            )
        if not request.args[0].strip():
            return (
                f"{_item(request)}: {why} this one is empty; use level=token, or leave the item "
                "out with --samples."
            )
    return None


def warn_of(requests: Sequence[Any], what: str) -> None:
    """Warn about requests that are not scored unchanged.

    Args:
        requests: The requests; without any there is no warning.
        what: Which they are, and how they are scored.
    """
    if not requests:
        return
    named = [_item(request) for request in requests[:NAMED]]
    if len(requests) > NAMED:
        named.append("...")
    logger.warning("%s: %d in all (%s).", what, len(requests), "; ".join(named))


def _item(request: Any) -> str:
    context, *rest = request.args
    name = f"{request.task_name}, item {request.doc_id}"
    if request.request_type != "loglikelihood":
        return f"{name}, {_shown(context[:SHOWN])}"
    before = "" if context == "" else f" after {_shown(context[-SHOWN:])}"
    return f"{name}, {_shown(rest[0][:SHOWN])}{before}"


def _shown(text: str) -> str:
    return f'"{one_line(text) if text.strip() else ascii(text)[1:-1]}"'
