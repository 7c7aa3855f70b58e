"""Seconds by phase, against a clock that is read by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gks_eval.errors import ResultsError
from gks_eval.util.profile_file import CellProfile, read_profile, write_profile
from gks_eval.util.stopwatch import Stopwatch


def test_a_phase_inside_another_is_subtracted_from_it() -> None:
    # made, into a, into b, out of b, out of a, into b, an error out of b, read
    times = iter([10.0, 11.0, 13.0, 18.0, 18.5, 20.0, 20.25, 21.0])
    settled: list[None] = []
    watch = Stopwatch(lambda: settled.append(None), lambda: next(times))
    with watch.phase("a"), watch.phase("b"):
        pass
    with pytest.raises(ValueError, match="b"), watch.phase("b"):
        raise ValueError("b")
    assert watch.read() == (11.0, {"other": 1.0 + 1.5 + 0.75, "a": 2.0 + 0.5, "b": 5.0 + 0.25})
    assert len(settled) == 7


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_profile(tmp_path) is None
    profile = CellProfile(seconds=2.0, phases={"head": 0.5, "other": 1.5}, tokens=9,
                          distinct_tokens=4)  # fmt: skip
    write_profile(tmp_path, profile)
    assert read_profile(tmp_path) == profile
    file = tmp_path / "profile.json"
    for change in (
        {"seconds": 1.9},  # less than its parts
        {"phases": {"lunch": 1.0}},
        {"schema": "gks_eval.profile/2"},
        {"tokens": -1},
    ):
        file.write_text(json.dumps(profile.model_dump(by_alias=True) | change), "utf-8")
        with pytest.raises(ResultsError, match="profile"):
            read_profile(tmp_path)
