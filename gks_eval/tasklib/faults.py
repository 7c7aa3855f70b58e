"""What can be wrong with a multiple-choice item, found without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Fault", "FaultKind", "describe_faults", "gold_index", "item_faults"]

_NAMED_ITEMS = 10


class FaultKind(str, Enum):
    """The kinds of faults, in the words that reports use."""

    GOLD_OUTSIDE = "gold answer outside the choices"
    EMPTY_OPTION = "empty option"
    DUPLICATED_OPTION = "duplicated option"
    SINGLE_OPTION = "single option"


@dataclass(frozen=True)
class Fault:
    """One fault of one item.

    Attributes:
        kind: What is wrong.
        detail: The offending value, for the reader who looks the item up.
    """

    kind: FaultKind
    detail: str


def gold_index(choices: Sequence[str], gold: object) -> int | None:
    """Return the position of the gold answer, or None when it is not among the choices.

    Args:
        choices: The options, in the order they are scored.
        gold: A position from 0, or the text of an option.
    """
    if isinstance(gold, bool):  # a bool is an int, but no task of the pack means position 0 or 1
        return None
    if isinstance(gold, int):
        return gold if 0 <= gold < len(choices) else None
    if isinstance(gold, str):
        return list(choices).index(gold) if gold in choices else None
    return None


def item_faults(
    choices: Sequence[str], gold: object, options: Sequence[str] | None = None
) -> tuple[Fault, ...]:
    """Return every fault of an item.

    Args:
        choices: What is scored.
        gold: A position from 0 or the text of a choice; anything else lies outside.
        options: The bare options where the choices wrap them in more text; the choices when None.
            Two are the same when they differ in white space alone.

    Returns:
        At most one fault of each kind, in the order of `FaultKind`.
    """
    found = []
    if gold_index(choices, gold) is None:
        found.append(Fault(FaultKind.GOLD_OUTSIDE, f"{gold!r} with {len(choices)} choices"))
    plain = [" ".join(choice.split()) for choice in (choices if options is None else options)]
    if empty := [i for i, text in enumerate(plain) if not text]:
        found.append(Fault(FaultKind.EMPTY_OPTION, f"option {_numbers(empty)}"))
    seen: dict[str, int] = {}
    for i, text in enumerate(plain):
        if text and text in seen:
            detail = f"options {seen[text]} and {i}: {text!r}"
            found.append(Fault(FaultKind.DUPLICATED_OPTION, detail))
            break
        seen.setdefault(text, i)
    if len(choices) == 1:
        found.append(Fault(FaultKind.SINGLE_OPTION, f"{choices[0]!r} alone"))
    return tuple(found)


def describe_faults(faults: Mapping[int, Sequence[Fault]], kind: FaultKind) -> str:
    """Count the items with a fault of `kind` and name the first of them.

    Args:
        faults: Faults by the item's index in its split.
        kind: The kind to report.

    Returns:
        ``"3 items with an empty option (index 4, 17, 90)"``, or an empty string for none.
    """
    items = [index for index, found in sorted(faults.items()) if any(f.kind == kind for f in found)]
    if not items:
        return ""
    noun = "item" if len(items) == 1 else "items"
    article = "an" if kind.value[0] in "aeiou" else "a"
    return f"{len(items)} {noun} with {article} {kind.value} (index {_numbers(items)})"


def _numbers(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:_NAMED_ITEMS])
    return f"{shown} and {len(values) - _NAMED_ITEMS} more" if len(values) > _NAMED_ITEMS else shown
