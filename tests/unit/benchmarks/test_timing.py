"""Interleaved timing, on a clock that the test turns."""

from __future__ import annotations

import pytest

from benchmarks.timing import per_second, ratio, time_interleaved, timing_of


class Workshop:
    """Contestants that note their turn and let the clock run on."""

    def __init__(self, **durations: list[float]) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.durations = {name: iter(given) for name, given in durations.items()}

    def clock(self) -> float:
        return self.now

    def run(self, name: str) -> None:
        self.log.append(name)
        self.now += next(self.durations[name])

    def contestants(self) -> dict[str, object]:
        return {name: lambda name=name: self.run(name) for name in self.durations}


def test_every_round_runs_each_once_and_who_begins_rotates() -> None:
    shop = Workshop(a=[1.0] * 6, b=[1.0] * 6, c=[1.0] * 6)
    time_interleaved(shop.contestants(), 4, clock=shop.clock)
    assert "".join(shop.log) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first is the warm-up


def test_medians_and_ranges_leave_the_warm_up_out() -> None:
    shop = Workshop(a=[50.0, 1.0, 2.0, 9.0], b=[50.0, 4.0, 4.0, 3.0])
    found = time_interleaved(shop.contestants(), 3, clock=shop.clock)
    assert found["a"].rounds == (1.0, 2.0, 9.0)
    assert (found["a"].median, found["a"].minimum, found["a"].maximum) == (2.0, 1.0, 9.0)
    assert found["b"].rounds == (4.0, 4.0, 3.0)
    assert found["b"].calls == 1


def test_two_ratios() -> None:
    # Medians 4 and 2, but round by round 4, 2 and 1/3: a slow third round hides in the medians.
    over, under = timing_of([4.0, 4.0, 3.0]), timing_of([1.0, 2.0, 9.0])
    found = ratio(over, under)
    assert found.of_medians == 2.0
    assert found.median_of_rounds == 2.0
    drifting = ratio(timing_of([2.0, 20.0, 6.0]), timing_of([1.0, 10.0, 2.0]))
    assert drifting.of_medians == 3.0
    assert drifting.median_of_rounds == 2.0


def test_a_quick_call_is_repeated_within_a_measurement() -> None:
    shop = Workshop(a=[5.0, 0.25, *[0.25] * 8], b=[3.0] * 3)
    found = time_interleaved(shop.contestants(), 2, least_seconds=1.0, clock=shop.clock)
    assert found["a"].calls == 1  # its first call was long enough to go by
    shop = Workshop(a=[0.5, 0.25, *[0.25] * 8], b=[3.0] * 3)
    found = time_interleaved(shop.contestants(), 2, least_seconds=1.0, clock=shop.clock)
    assert found["a"].calls == 4
    assert found["a"].rounds == (0.25, 0.25)
    assert found["b"].calls == 1


def test_a_warm_up_of_its_own_takes_the_place_of_the_first_call() -> None:
    shop = Workshop(a=[7.0, 8.0])
    warmed: list[str] = []
    found = time_interleaved(
        shop.contestants(),
        2,
        warm_ups={"a": lambda: warmed.append("a")},
        least_seconds=100.0,
        clock=shop.clock,
    )
    assert warmed == ["a"]
    assert found["a"].rounds == (7.0, 8.0)


def test_the_device_is_waited_for_before_the_clock_is_read() -> None:
    log: list[str] = []

    def clock() -> float:
        log.append("clock")
        return float(len(log))

    time_interleaved(
        {"a": lambda: log.append("call")},
        1,
        synchronise=lambda: log.append("wait"),
        clock=clock,
    )
    assert log == ["wait", "clock", "call", "wait", "clock"] * 2


def test_rates_are_by_the_median() -> None:
    assert per_second(600, timing_of([1.0, 3.0, 2.0])) == pytest.approx(300.0)
