from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gks_eval.tasklib.data import interleave, resolve_files


def test_interleave_takes_turns() -> None:
    assert interleave([2, 3, 1]) == [0, 2, 5, 1, 3, 4]
    assert interleave([]) == []


@given(st.lists(st.integers(0, 7), max_size=6))
def test_interleave_is_a_permutation_and_any_start_is_even(lengths: list[int]) -> None:
    order = interleave(lengths)
    assert sorted(order) == list(range(sum(lengths)))
    part_of = [part for part, length in enumerate(lengths) for _ in range(length)]
    taken = [0] * len(lengths)
    for index in order:
        part = part_of[index]
        taken[part] += 1
        behind = [taken[p] for p in range(len(lengths)) if taken[p] < lengths[p]]
        assert all(taken[part] - count <= 1 for count in behind)


def test_files_are_beside_the_yaml(tmp_path: Path) -> None:
    files = resolve_files({"test": "data/x.jsonl"}, tmp_path / "task.yaml")
    assert files == {"test": str(tmp_path.resolve() / "data" / "x.jsonl")}
