"""What follows from the contrasts with all controls: a claim, or why there is none.

A claim needs all controls of its role beaten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gks_eval.evidence.question import Claim, Contrast, Role
from gks_eval.evidence.referee import Rules

__all__ = ["claims"]

_CLAIMS: Final[Mapping[Role, str]] = {
    "subtraction": "general knowledge subtraction helps here",
    "routing": "routing helps here",
    "library": "the trained experts matter here",
}


def claims(treatment: str, contrasts: Sequence[Contrast], rules: Rules) -> list[Claim]:
    """Answer for each role whether all of its controls are beaten.

    Args:
        treatment: Its name in the sentences.
        contrasts: As `judge` returns them.
        rules: As given to `judge`.
    """
    found = []
    for role, claim in _CLAIMS.items():
        own = [contrast for contrast in contrasts if contrast.role == role]
        if not own:
            continue
        if all(contrast.state == "beaten" for contrast in own):
            names = ", ".join(contrast.name for contrast in own)
            beats = f"{treatment} beats {names} (Holm over {len(contrasts)} controls)"
            sentence = f"{claim[0].upper()}{claim[1:]}: {beats}."
            found.append(Claim(role=role, holds=True, sentence=sentence))
        elif any(contrast.state in ("as well", "better") for contrast in own):
            sentence = f"Not shown that {claim}: {_equals(treatment, own, rules)}."
            found.append(Claim(role=role, holds=False, sentence=sentence))
        else:
            sentence = f"Too few items to say whether {claim}: {_undecided(own, rules)}."
            found.append(Claim(role=role, holds=None, sentence=sentence))
    return found


def _equals(treatment: str, contrasts: Sequence[Contrast], rules: Rules) -> str:
    parts = []
    for state, word in (("better", "better than"), ("as well", "as well as")):
        names = [contrast.name for contrast in contrasts if contrast.state == state]
        if names:
            do = "does" if len(names) == 1 else "do"
            parts.append(f"{', '.join(names)} {do} {word} {treatment}")
    return f"{' and '.join(parts)} (margin {_points(rules)})"


def _undecided(contrasts: Sequence[Contrast], rules: Rules) -> str:
    undecided = [contrast for contrast in contrasts if contrast.state == "undecided"]
    names = ", ".join(contrast.name for contrast in undecided)
    are = "is" if len(undecided) == 1 else "are"
    said = f"with n = {undecided[0].n:,}, {names} {are} neither beaten nor shown to do as well"
    needed = [contrast.needed for contrast in undecided if contrast.needed is not None]
    if not needed:
        return f"{said}; as no item differs, the number needed is not known"
    if max(needed) <= undecided[0].n:
        return f"{said}; the differences lie near the margin of {_points(rules)}"
    return f"{said}; a difference of {_points(rules)} needs about {max(needed):,} items (power 80%)"


def _points(rules: Rules) -> str:
    points = 100.0 * rules.margin
    return f"{points:g} point" if points == 1.0 else f"{points:g} points"
