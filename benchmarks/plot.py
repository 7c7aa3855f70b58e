"""The growth rows as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Growth, GrowthPoint
from gks_eval.errors import UsageError
from gks_eval.util.files import replaced_file

__all__ = ["FORMATS", "check_plot", "draw_growth"]

FORMATS = ("png", "svg", "pdf")


def check_plot(path: Path) -> None:
    """Check, before hours of measuring, that a picture can be drawn there.

    Raises:
        UsageError: The file's suffix is not a known format, or matplotlib is missing.
    """
    import importlib.util

    if path.suffix.removeprefix(".").lower() not in FORMATS:
        raise UsageError(f"--plot {path} ends in none of {', '.join(FORMATS)}; name it so.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib: pip install "gks-eval[evidence]".')


def draw_growth(growth: Growth, picture: Path) -> None:
    """Draw seconds against experts, choices and context, both axes logarithmic.

    Args:
        growth: The rows.
        picture: The file to write, in the format of its suffix.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[tuple[str, str, Sequence[GrowthPoint]]] = (
        (f"A layer's update, {growth.layer}", "experts", growth.experts),
        (f"An evaluation, {growth.model}", "choices per item", growth.choices),
        (f"An evaluation, {growth.model}", "tokens of context", growth.contexts),
    )
    for axes, (title, label, points) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        at = [point.at for point in points]
        for name, marker in zip(points[0].seconds, "so", strict=True):
            timings = [point.seconds[name] for point in points]
            median = [1000 * timing.median for timing in timings]
            below = [1000 * (timing.median - timing.minimum) for timing in timings]
            above = [1000 * (timing.maximum - timing.median) for timing in timings]
            axes.errorbar(at, median, yerr=[below, above], marker=marker, capsize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(at, [str(one) for one in at])
        # With powers of ten alone, a plot within one decade has at most one label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replaced_file(picture) as aside:
        figure.savefig(aside, format=picture.suffix[1:].lower(), dpi=110)
