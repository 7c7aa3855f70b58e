"""A short hash of plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["digest"]


def digest(content: Mapping[str, Any]) -> str:
    """Hash plain JSON values: 16 hex digits of the SHA-256 of their canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
