"""The end of a long run says how many inputs each family of parsers was given."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from fuzzing import LONG, TALLIES

    if LONG and TALLIES:
        terminalreporter.section("inputs")
        for family, tally in TALLIES.items():
            counts = ", ".join(f"{tally[kind]} {kind}" for kind in ("accepted", "refused"))
            terminalreporter.write_line(f"{family}: {counts}, {tally['seconds']} s")
