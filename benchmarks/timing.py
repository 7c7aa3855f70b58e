"""Times contestants in alternation.

A machine's speed drifts: other processes come and go, a processor heats up. Contestants measured
one after the other would run under different conditions. So each runs once in every round, and the
order rotates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.record import Ratio, Timing

__all__ = ["Call", "per_second", "ratio", "synchroniser", "time_interleaved", "timing_of"]

Call = Callable[[], object]

MOST_CALLS = 10_000


def time_interleaved(
    contestants: Mapping[str, Call],
    rounds: int,
    *,
    warm_ups: Mapping[str, Call] | None = None,
    least_seconds: float = 0.0,
    synchronise: Call = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time contestants in alternation.

    Args:
        contestants: Calls to time, by name.
        rounds: Number of measurements per contestant.
        warm_ups: Shorter calls to run first, untimed, instead of long contestants.
        least_seconds: A measurement repeats a faster call for about this long; contestants in
            `warm_ups` are called once.
        synchronise: Waits until the device has finished.
        clock: Returns the time in seconds.

    Returns:
        Seconds per call, by name.
    """
    names = list(contestants)
    calls: dict[str, int] = {}
    for name in names:
        if warm_ups and name in warm_ups:
            warm_ups[name]()
            calls[name] = 1
            continue
        spent = _seconds(contestants[name], 1, synchronise, clock)
        if spent < least_seconds:  # a first call is not representative
            spent = _seconds(contestants[name], 1, synchronise, clock)
        calls[name] = min(MOST_CALLS, max(1, math.ceil(least_seconds / max(spent, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            spent = _seconds(contestants[name], calls[name], synchronise, clock)
            seconds[name].append(spent / calls[name])
    return {name: timing_of(seconds[name], calls[name]) for name in names}


def _seconds(call: Call, times: int, synchronise: Call, clock: Callable[[], float]) -> float:
    synchronise()
    start_time = clock()
    for _ in range(times):
        call()
    synchronise()
    return clock() - start_time


def timing_of(rounds: Sequence[float], calls: int = 1) -> Timing:
    """Summarise the seconds per call of each round."""
    return Timing(
        median=statistics.median(rounds),
        minimum=min(rounds),
        maximum=max(rounds),
        rounds=tuple(rounds),
        calls=calls,
    )


def ratio(over: Timing, under: Timing) -> Ratio:
    """Return how many times as long `over` took as `under`, which ran in the same rounds."""
    by_round = [a / b for a, b in zip(over.rounds, under.rounds, strict=True)]
    return Ratio(
        of_medians=over.median / under.median, median_of_rounds=statistics.median(by_round)
    )


def per_second(amount: float, timing: Timing) -> float:
    """Return `amount` per second, by the call's median time."""
    return amount / timing.median


def synchroniser(device: str) -> Call:
    """Return a call that waits for a device; a CPU is done when a call returns."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)
