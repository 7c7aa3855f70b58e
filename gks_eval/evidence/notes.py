"""Notes on what a comparison leaves out, one sentence per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["absent_note", "forced_notes", "lacking_note", "some"]


def some(parts: Sequence[str], most: int = 3) -> str:
    """Return the first few names and how many more there are."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return f"{', '.join(parts[:most])}{more}"


def forced_notes(faults: Sequence[str]) -> list[str]:
    """Return notes on why runs are not comparable that are compared all the same."""
    if len(faults) <= 3:
        return [f"not comparable: {fault}" for fault in faults]
    rest = len(faults) - 3
    return [f"not comparable, {len(faults)} faults: {'; '.join(faults[:3])}; and {rest} more"]


def lacking_note(lacking: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Return a note on averages that cannot be computed, from (group, run, missing tasks)."""
    if not lacking:
        return []
    if len(lacking) == 1:
        ((group, run, tasks),) = lacking
        return [f"{group} cannot be averaged for {run}: no {some(tasks, 5)}"]
    named = some([f"{group} for {run} (no {some(tasks, 2)})" for group, run, tasks in lacking])
    return [f"{len(lacking)} averages cannot be computed because tasks are missing: {named}"]


def absent_note(absent: Mapping[str, Sequence[str]], tasks: int) -> list[str]:
    """Return a note on the tasks that runs lack.

    Args:
        absent: Missing tasks by run.
        tasks: Number of all tasks.
    """
    found = [(run, names) for run, names in absent.items() if names]
    if not found:
        return []
    if len(found) == 1 and len(found[0][1]) == 1:
        ((run, (name,)),) = found
        return [f"{name} is missing in {run}"]
    named = some([f"{run} lacks {len(names)} ({some(names)})" for run, names in found])
    return [f"of {tasks} tasks some are missing: {named}"]
