"""Requests that cannot be scored as they are, named by task, item and text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gks_eval.errors import one_line

__all__ = ["too_long", "warn_of"]

logger = logging.getLogger(__name__)

NAMED = 3
SHOWN = 40

TokenPair = tuple[Sequence[int], Sequence[int]]


def too_long(requests: Sequence[Any], pairs: Sequence[TokenPair], max_length: int) -> str | None:
    """Return a sentence about the first continuation that the model cannot take, if there is one.

    Args:
        requests: lm-eval's requests.
        pairs: Their (context, continuation) tokens.
        max_length: The most tokens that the model may see.
    """
    for request, (_, text) in zip(requests, pairs, strict=True):
        if len(text) > max_length:
            return (
                f"{_item(request)}: the continuation has {len(text)} tokens, more than "
                f"max_length={max_length}; raise max_length, or leave the item out with --samples."
            )
    return None


def warn_of(requests: Sequence[Any], what: str) -> None:
    """Warn of requests that are not scored as they are.

    Args:
        requests: Those requests; no warning for none.
        what: What they are and what is done about them.
    """
    if not requests:
        return
    named = [_item(request) for request in requests[:NAMED]]
    if len(requests) > NAMED:
        named.append("...")
    logger.warning("%s: %d in all (%s).", what, len(requests), "; ".join(named))


def _item(request: Any) -> str:
    context, continuation = request.args[:2]
    before = "" if context == "" else f" after {_shown(context[-SHOWN:])}"
    return f"{request.task_name}, item {request.doc_id}, {_shown(continuation[:SHOWN])}{before}"


def _shown(text: str) -> str:
    return f'"{one_line(text) if text.strip() else ascii(text)[1:-1]}"'
