"""The paper's Table 1 as an amount of work: its items, and random texts of about their lengths.

Lengths are means over the sets' first 60 items (BBH: 8), counted with SmolLM2's tokenizer and the
prompts of lm-eval's tasks. A fifth is added, because Phi-3's vocabulary is smaller and its chat
template adds about six tokens. Numbers of items are those of the full splits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

__all__ = ["DISTINCT_PER_ITEM", "items_of_table", "texts_like_table"]

TABLE: Final = "phi3_english"
_LONGER: Final = 1.2


@dataclass(frozen=True)
class _Lengths:
    """Tokens of an item's prompt and of each choice, and the number of choices."""

    prompt: float
    choice: float
    choices: int

    @property
    def distinct(self) -> float:
        """Return the distinct tokens of an item."""
        return self.prompt + self.choices * self.choice


_LENGTHS: Final = {
    name: _Lengths(_LONGER * prompt, _LONGER * choice, choices)
    for name, prompt, choice, choices in (
        ("piqa", 26.3, 9.4, 2),
        ("boolq", 152.2, 0.5, 2),
        ("swag", 17.9, 9.4, 4),
        ("hellaswag", 32.6, 11.8, 4),
        ("arc_easy", 30.2, 1.4, 4),
        ("arc_challenge", 36.2, 3.2, 4),
        ("winogrande", 17.0, 5.2, 2),
        ("openbookqa", 12.0, 2.0, 4),
        ("bbh", 100.0, 2.2, 4),
    )
}
DISTINCT_PER_ITEM: Final = {name: lengths.distinct for name, lengths in _LENGTHS.items()}
"""Distinct tokens per item and set."""


def items_of_table() -> tuple[dict[str, int], int]:
    """Return the number of items of each set of Table 1, and the number of settings."""
    from gks_eval.evidence.paper import load_paper

    table = load_paper().tables[TABLE]
    return dict(table.full_split), len(table.rows)


def texts_like_table(
    items: int, vocabulary: int, seed: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the requests of random items, each text scored as a whole, as the paper does.

    Args:
        items: Number of items; sets are drawn by their share of Table 1.
        vocabulary: Tokens are below it.
        seed: Of everything random.

    Returns:
        (first token, all other tokens) per choice.
    """
    draw = random.Random(seed)  # noqa: S311 - no cryptography
    counts, _ = items_of_table()
    found = []
    for name in draw.choices(list(counts), list(counts.values()), k=items):
        lengths = _LENGTHS[name]
        prompt = _tokens(draw, lengths.prompt, vocabulary)
        for _ in range(lengths.choices):
            # The last token is predicted only.
            text = (*prompt, *_tokens(draw, lengths.choice + 1, vocabulary))
            found.append((text[:1], text[1:]))
    return found


def _tokens(draw: random.Random, mean: float, vocabulary: int) -> tuple[int, ...]:
    """Return about `mean` tokens, from half to one and a half times as many."""
    length = max(1, round(mean * draw.uniform(0.5, 1.5)))
    return tuple(draw.randrange(vocabulary) for _ in range(length))
