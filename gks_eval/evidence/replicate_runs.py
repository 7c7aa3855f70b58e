"""Finds the runs of every method and seed."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.clusters import DECLARED, with_clusters
from gks_eval.evidence.runs import Run, find_runs

__all__ = ["Method", "find_methods"]

_LEAST: Final = 3


@dataclass(frozen=True, slots=True)
class Method:
    """The runs of one method, by the library's recorded seed or the text that ``*`` matched."""

    label: str
    pattern: str
    runs: Mapping[str, Run]


def find_methods(sources: Sequence[str], cluster: str = DECLARED) -> list[Method]:
    """Find the runs of every method.

    Args:
        sources: Each ``LABEL=PATTERN`` with one ``*`` in the pattern, as in
            ``arrow=runs/seed*/arrow``; the first is the baseline. Runs are paired by the seed that
            the library's training recorded, or by the text that ``*`` matches where a run has none.
        cluster: Which items are linked, see `with_clusters`.

    Raises:
        UsageError: A source has another form, or a label occurs twice.
        ResultsError: Nothing matches, a match holds several runs or none, there are fewer than
            three seeds, a seed occurs twice, or methods have other seeds.
    """
    if len(sources) < 2:
        raise UsageError(
            "--replicates compares two methods or more; give LABEL=PATTERN for each, the baseline "
            "first."
        )
    methods: list[Method] = []
    for source in sources:
        label, equals, pattern = source.partition("=")
        if not equals or not label or pattern.count("*") != 1:
            raise UsageError(
                f"--replicates: {source!r} is not LABEL=PATTERN with one * where the seed stands; "
                "write it as in 'arrow=runs/seed*/arrow'."
            )
        if label in {method.label for method in methods}:
            raise UsageError(f"--replicates: two methods are called {label!r}; rename one.")
        runs = _matches(label, pattern)
        linked_runs = with_clusters(list(runs.values()), cluster)
        methods.append(Method(label, pattern, dict(zip(runs, linked_runs, strict=True))))
    methods = _by_recorded_seed(methods)
    first = methods[0]
    for method in methods[1:]:
        if other := sorted(method.runs.keys() ^ first.runs.keys()):
            raise ResultsError(
                f"{method.label} and {first.label} do not both have the seeds "
                f"{', '.join(other[:5])}; every method needs a run of every seed."
            )
    if len(first.runs) < _LEAST:
        raise ResultsError(
            f"{first.pattern} matches {len(first.runs)} seeds; the variance between seeds needs at "
            f"least {_LEAST}."
        )
    return [
        replace(method, runs={seed: method.runs[seed] for seed in first.runs}) for method in methods
    ]


def _by_recorded_seed(methods: Sequence[Method]) -> list[Method]:
    """Return the methods with their runs by the libraries' seeds, if all results record them."""
    by_seed: list[Method] = []
    recorded = True
    for method in methods:
        runs: dict[str, Run] = {}
        for text, run in method.runs.items():
            seed = run.info.get("seed")
            if seed is None:
                recorded = False
            elif seed in runs:
                raise ResultsError(
                    f"{method.label}: the libraries of {runs[seed].folder} and {run.folder} were "
                    f"trained with the same seed {seed}; every replicate needs its own seed."
                )
            runs[seed or f"*{text}"] = run
        by_seed.append(Method(method.label, method.pattern, runs))
    return by_seed if recorded else list(methods)


def _matches(label: str, pattern: str) -> dict[str, Run]:
    before, _, after = pattern.partition("*")
    # As paths, because glob writes other separators than the pattern's on Windows.
    fixed = re.compile(re.escape(Path(pattern).as_posix()).replace(r"\*", "(.*)"), re.DOTALL)
    runs: dict[str, Run] = {}
    literal = f"{glob.escape(before)}*{glob.escape(after)}"
    for path in sorted(glob.glob(literal)):  # noqa: PTH207 - Path.glob refuses absolute patterns
        if found := fixed.fullmatch(Path(path).as_posix()):
            held = find_runs([path])
            if len(held) > 1:
                raise ResultsError(
                    f"{path} holds {len(held)} runs; the pattern of {label} must match a folder of "
                    "one run per seed."
                )
            runs[found[1]] = held[0]
    if not runs:
        raise ResultsError(f"{pattern} matches no results; check the pattern of {label}.")
    return runs
