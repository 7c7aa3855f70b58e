"""The loss curves of a library as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gks_eval.errors import LibraryError
from gks_eval.training.adapter_writer import CURVE
from gks_eval.util.files import replaced_file
from gks_eval.util.json_file import JsonFile

__all__ = ["draw_curves"]

_FILE: Final = JsonFile("line of a loss curve", LibraryError, "train the adapter again")


def draw_curves(library: Path, keys: Sequence[str], picture: Path) -> None:
    """Draw loss against step, one small plot per adapter, with a common scale.

    Args:
        library: The library's folder.
        keys: Keys of its finished adapters.
        picture: The PNG to write.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, key in zip(grid.flat, keys, strict=False):
        steps = [step for _, step in _FILE.lines(library / key / CURVE)]
        axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], linewidth=1.2)
        axes.set_title(key, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(keys) :]:
        axes.set_visible(False)
    figure.supxlabel("optimiser step")
    figure.supylabel("training loss")
    with replaced_file(picture) as aside:
        figure.savefig(aside, format="png", dpi=90)
