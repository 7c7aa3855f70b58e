"""Heat maps as images of one pixel per cell, which the page stretches."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Heat", "heat"]


@dataclass(frozen=True, slots=True)
class Heat:
    """A heat map.

    Attributes:
        label: What the colours show.
        columns: Names of the columns.
        rows: Names of the rows.
        image: One pixel per cell, as a data URL.
        scale: The colours from low to high, as a data URL.
        low: The value of the first colour.
        high: The value of the last.
        dense: Whether the row names are short enough for narrow rows.
    """

    label: str
    columns: Sequence[str]
    rows: Sequence[str]
    image: str
    scale: str
    low: str
    high: str
    dense: bool


def heat(
    table: Any, columns: Sequence[str], rows: Sequence[str], label: str, signed: bool = False
) -> Heat:
    """Return a heat map.

    Args:
        table: The numbers, (rows, columns).
        columns: Names of the columns.
        rows: Names of the rows.
        label: What the numbers are.
        signed: Whether the scale is -1 to 1; otherwise it is 0 to the largest number.
    """
    import numpy as np

    numbers = np.asarray(table, dtype=float)
    low, high = (-1.0, 1.0) if signed else (0.0, float(numbers.max()) or 1.0)
    colours = "RdBu_r" if signed else "viridis"
    return Heat(
        label=label,
        columns=columns,
        rows=rows,
        image=_png(numbers, colours, low, high),
        scale=_png(np.linspace(low, high, 64)[None], colours, low, high),
        low=f"{low:g}",
        high=f"{high:.2g}",
        dense=max(map(len, rows)) <= 20,
    )


def _png(numbers: Any, colours: str, low: float, high: float) -> str:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, numbers, cmap=colours, vmin=low, vmax=high, format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
