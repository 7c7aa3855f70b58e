"""JSON as lm-eval writes it, read so that everything in it can be written again."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["parse"]

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(raw: bytes) -> Any:
    r"""Return the content of `raw`, lone surrogates replaced by question marks.

    JSON may spell half a character (``"\ud800"``), which no UTF-8 file can hold: it would be met
    only when a table or page is written.

    Raises:
        ValueError: It is no JSON, or not of a Unicode encoding.
        RecursionError: It is nested too deeply.
    """
    content = json.loads(raw)
    if _SURROGATE.search(raw):
        text = json.dumps(content, ensure_ascii=False)
        content = json.loads(text.encode("utf-8", "replace"))
    return content
