"""Records of whole processes, of growth and of large libraries."""

from __future__ import annotations

from benchmarks.record.timed import Timing
from gks_eval.util.yaml import FrozenModel

__all__ = ["Growth", "GrowthPoint", "LibraryRow", "Startup"]


class Startup(FrozenModel):
    """Time of whole processes.

    Attributes:
        seconds: ``hf`` and ``gks_arrow``: lm_eval on a tiny model, from start to end.
        difference: Median over the rounds of ``gks_arrow`` minus ``hf``.
        python: ``bridge`` and ``no bridge``: an interpreter that does nothing.
        bridge: Median over the rounds of their difference.
    """

    seconds: dict[str, Timing]
    difference: float
    python: dict[str, Timing]
    bridge: float


class GrowthPoint(FrozenModel):
    """Seconds at one size, by contestant."""

    at: int
    seconds: dict[str, Timing]


class Growth(FrozenModel):
    """How cost grows.

    Attributes:
        layer: The layer of `experts`, as ``K->D, T tokens``.
        experts: Seconds of a layer's update against the number of experts: ``routed``, ``peft``.
        model: The model of `choices` and `contexts`.
        choices: Seconds of an evaluation against choices per item: ``plain``, ``packed``.
        contexts: Seconds of an evaluation against tokens of context: ``plain``, ``packed``.
    """

    layer: str
    experts: tuple[GrowthPoint, ...]
    model: str
    choices: tuple[GrowthPoint, ...]
    contexts: tuple[GrowthPoint, ...]


class LibraryRow(FrozenModel):
    """A library of many random adapters, read from disk once by a new process.

    Attributes:
        base: Base model.
        experts: Task adapters; there is one general adapter.
        file_bytes: Size of all adapters on disk.
        load: Seconds of `load_library`.
        attach: Seconds of attaching the loaded library to the model, by setting, in order.
        evaluated: The setting of the evaluation, the library already attached.
        items: Items of all the demo's tasks together.
        evaluate: Seconds of the evaluation.
        base_evaluate: Seconds of the same evaluation by the base without adapters.
        peak_bytes: Largest resident memory of the process until the end of ``start`` (model and
            tasks), ``load``, ``attach`` (all settings) and ``evaluate``; none of them is
            subtracted from another.
    """

    base: str
    experts: int
    file_bytes: int
    load: float
    attach: dict[str, float]
    evaluated: str
    items: int
    evaluate: float
    base_evaluate: float
    peak_bytes: dict[str, int]
