from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gks_eval.errors import DataError
from gks_eval.tasklib.faults import Fault, FaultKind, describe_faults, gold_index, item_faults
from gks_eval.tasklib.lint import TaskLint, lint_items, raise_for_faults

OUTSIDE, EMPTY, DUPLICATED, SINGLE = FaultKind


def kinds(*args: object, **kwargs: object) -> list[FaultKind]:
    return [fault.kind for fault in item_faults(*args, **kwargs)]


@pytest.mark.parametrize(
    ("gold", "index"),
    [
        (0, 0),
        (2, 2),
        (3, None),
        (-1, None),
        ("b", 1),
        ("d", None),
        (None, None),
        (True, None),
        (1.0, None),
        ("1", None),
    ],
)
def test_gold_index(gold: object, index: int | None) -> None:
    assert gold_index(["a", "b", "c"], gold) == index


@pytest.mark.parametrize(
    ("choices", "gold", "expected"),
    [
        (["a", "b"], 1, []),
        (["a", "b"], 2, [OUTSIDE]),
        (["a", ""], 0, [EMPTY]),
        (["a", " \n"], 0, [EMPTY]),
        (["", ""], 0, [EMPTY]),
        (["a", "b", "a"], 0, [DUPLICATED]),
        (["to be", "b", " to  be"], 0, [DUPLICATED]),
        (["a", "A"], 0, []),
        (["", "b", "b"], "c", [OUTSIDE, EMPTY, DUPLICATED]),
        ([], 0, [OUTSIDE]),
        (["a"], 0, [SINGLE]),
        (["(A)"], "(B)", [OUTSIDE, SINGLE]),
    ],
)
def test_item_faults(choices: list[str], gold: object, expected: list[FaultKind]) -> None:
    assert kinds(choices, gold) == expected


def test_the_bare_options_count_where_the_choices_wrap_them() -> None:
    assert kinds(["x a", "x "], 0, options=["a", ""]) == [EMPTY]
    assert kinds(["A", "B"], 0, options=["same", "same"]) == [DUPLICATED]


def test_a_duplicate_names_both_places() -> None:
    (fault,) = item_faults(["x", "y", "z", "y"], 0)
    assert fault == Fault(DUPLICATED, "options 1 and 3: 'y'")


@given(st.lists(st.text(min_size=1, alphabet="abc "), max_size=6), st.integers(-3, 8))
def test_faults_against_plain_definitions(choices: list[str], gold: int) -> None:
    plain = [" ".join(choice.split()) for choice in choices]
    full = [text for text in plain if text]
    found = kinds(choices, gold)
    assert (OUTSIDE in found) == (gold not in range(len(choices)))
    assert (EMPTY in found) == ("" in plain)
    assert (DUPLICATED in found) == (len(set(full)) < len(full))


def test_describe_counts_and_names() -> None:
    faults = {9: item_faults(["a"], 1), 4: item_faults(["a"], 2), 5: item_faults(["a", "a"], 0)}
    told = describe_faults(faults, OUTSIDE)
    assert told == "2 items with a gold answer outside the choices (index 4, 9)"
    assert describe_faults(faults, DUPLICATED) == "1 item with a duplicated option (index 5)"
    assert describe_faults(faults, EMPTY) == ""


def test_describe_stops_naming_after_ten() -> None:
    faults = dict.fromkeys(range(13), item_faults(["", "b"], 1))
    told = describe_faults(faults, EMPTY)
    assert told == "13 items with an empty option (index 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more)"


def test_lint_items_indexes_and_counts() -> None:
    lint = lint_items("set", [(["a", "b"], 0), (["a", "a"], 5), (["a", ""], 1)])
    assert lint.items == 3
    assert sorted(lint.faults) == [1, 2]
    assert [lint.count(kind) for kind in FaultKind] == [1, 1, 1, 0]


def test_raise_for_faults() -> None:
    clean = TaskLint("clean", 4)
    raise_for_faults([clean])
    faulty = lint_items("faulty", [(["a", "b"], 3), (["a", "b"], 0)])
    with pytest.raises(DataError, match="faulty items: 1, in 1 of 2 tasks") as caught:
        raise_for_faults([clean, faulty])
    assert caught.value.exit_code == 6
