"""Pairs the items of two runs, and reports what makes two runs incomparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gks_eval.evidence.records import TaskResult
from gks_eval.evidence.samples import Item

__all__ = ["Pairing", "comparability_faults", "pair_items"]

# The keys that determine a prompt; compared if there are no samples with prompts.
_PROMPT_KEYS = (
    "doc_to_text",
    "doc_to_choice",
    "doc_to_target",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "dataset_name",
    "validation_split",
    "test_split",
)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which items of two runs of one task were paired.

    Attributes:
        pairs: (first run's item, second run's item), in the first run's order.
        only_first: Items of the first run without a partner.
        only_second: Items of the second run without a partner.
        other_prompt: Pairs whose prompts differ.
        other_target: Pairs whose gold answers differ.
    """

    pairs: tuple[tuple[Item, Item], ...]
    only_first: int
    only_second: int
    other_prompt: int
    other_target: int

    @property
    def unpaired(self) -> int:
        """Return how many items of either run have no partner."""
        return self.only_first + self.only_second


def pair_items(first: Sequence[Item], second: Sequence[Item]) -> Pairing:
    """Pair items by document hash and occurrence: the k-th copy pairs with the k-th copy."""
    partners = {item.key: item for item in second}
    pairs = tuple((item, partners[item.key]) for item in first if item.key in partners)
    return Pairing(
        pairs=pairs,
        only_first=len(first) - len(pairs),
        only_second=len(second) - len(pairs),
        other_prompt=sum(a.prompt_hash != b.prompt_hash for a, b in pairs),
        other_target=sum(a.target_hash != b.target_hash for a, b in pairs),
    )


def comparability_faults(
    first: TaskResult, second: TaskResult, pairing: Pairing | None
) -> list[str]:
    """Return why two runs of one task are not comparable, or an empty list.

    Args:
        first: One run's record of the task.
        second: The other's.
        pairing: The pairing of their items. None if samples are missing; then the recorded
            configurations are compared instead of the prompts.
    """
    found = []
    if first.version != second.version:
        found.append(f"version {first.version} against {second.version}")
    if first.shots != second.shots:
        found.append(f"{first.shots} shots against {second.shots}")
    if first.original != second.original:
        found.append(f"a split of {first.original} items against {second.original}")
    elif first.n != second.n:
        found.append(f"limited to {first.n} items against {second.n}")
    if pairing is None:
        found.extend(_configured(first, second))
        return found
    if pairing.other_prompt:
        found.append(f"other prompts in {pairing.other_prompt} of {len(pairing.pairs)} pairs")
    if pairing.other_target:
        found.append(f"other gold answers in {pairing.other_target} of {len(pairing.pairs)} pairs")
    if not pairing.pairs:
        found.append("no item in common")
    return found


def _configured(first: TaskResult, second: TaskResult) -> list[str]:
    found = []
    if first.prompt_stamp != second.prompt_stamp:
        found.append("another chat template or system instruction")
    for key in _PROMPT_KEYS:
        values = (first.config.get(key), second.config.get(key))
        # A function may be recorded with its address, which differs between runs.
        if values[0] != values[1] and not all(" at 0x" in str(value) for value in values):
            found.append(f"another {key}")
    return found
