"""The error tree: what its docstring draws is what there is."""

from __future__ import annotations

import re

import pytest

from gks_eval import errors
from gks_eval.errors import GksError, LibraryError, did_you_mean


def drawn() -> dict[str, tuple[int, int]]:
    """Return (depth, exit code) of each class in the docstring's tree."""
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([\s│├└─]*)(\w+Error)\s+(\d+)", line):
            found[match[2]] = (len(match[1]) // 4, int(match[3]))
    return found


def classes() -> dict[str, type[GksError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, GksError)
    }


def test_the_docstring_draws_the_tree() -> None:
    tree = {
        name: (len(kind.__mro__) - len(GksError.__mro__) + 1, kind.exit_code)
        for name, kind in classes().items()
    }
    assert drawn() == tree


def test_exit_codes_are_distinct_and_leave_0_and_the_shells_alone() -> None:
    codes = [kind.exit_code for kind in classes().values()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 64 for code in codes)


def test_everything_is_exported_once() -> None:
    functions = {"did_you_mean", "one_line", "reason", "whole_reason"}
    assert sorted({*classes(), *functions}) == sorted(errors.__all__)


@pytest.mark.parametrize(
    ("error", "last", "expected"),
    [
        (ValueError("no such file.\nsee above"), False, "no such file"),
        (ValueError("Traceback:\n  here\nno such file. "), True, "no such file"),
        (KeyError(), False, "KeyError"),
        (OSError("\n \n"), True, "OSError"),
    ],
)
def test_the_reason_of_another_librarys_error(error: Exception, last: bool, expected: str) -> None:
    assert errors.reason(error, last) == expected


def test_the_whole_reason_is_one_line() -> None:
    assert errors.whole_reason(ValueError(" no such\n  file. \n")) == "no such file"
    assert errors.whole_reason(KeyError()) == "KeyError"


def test_a_compatibility_error_is_caught_as_a_library_error() -> None:
    with pytest.raises(LibraryError):
        raise errors.CompatibilityError("x")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("topk", ["top_k", "temperature"], "did you mean 'top_k'?"),
        ("xyz", ["b", "a"], "known: a, b"),
        ("xyz", [], "known: none"),
        ("", ["a"], "known: a"),
        ("avg", iter(["avg"]), "did you mean 'avg'?"),
    ],
)
def test_near_names(name: str, known, expected: str) -> None:
    assert did_you_mean(name, known) == expected


def test_a_question_ends_in_its_mark() -> None:
    assert did_you_mean("x", ["random", "a", "random"]) == "known: a, random"
    hint = did_you_mean("topk", ["top_k"])
    assert str(GksError(f"unknown; {hint}.")) == "unknown; did you mean 'top_k'?"
    assert str(GksError("known: a?.")) == "known: a?."


def test_a_message_is_one_printable_line_and_keeps_its_words() -> None:
    error = GksError("a  b\n  c\r\x85d \x1b[31m \ud800 \u202e ü\n")
    assert str(error) == r"a  b c d \x1b[31m \ud800 \u202e ü"
