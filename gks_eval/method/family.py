"""The kind of a setting, and what it needs: what a leaderboard says next to scores."""

from __future__ import annotations

from typing import Final, Literal

from gks_eval.method.setting import Setting

__all__ = ["Family", "family_of", "needs_of"]

Family = Literal["base", "routers", "merges", "controls", "experts"]

# Routers that do not read the tokens, or read them wrongly on purpose.
_CONTROLS: Final = ("uniform", "random", "shuffled")


def family_of(setting: Setting) -> Family:
    """Return the family of a setting: a stand-in or a router without content is a control."""
    if not setting.uses_library:
        return "base"
    if setting.stand_ins.used or setting.router in _CONTROLS:
        return "controls"
    if setting.expert is not None:
        return "experts"
    return "merges" if setting.merge is not None else "routers"


def needs_of(setting: Setting) -> str:
    """Return what must be there beyond the adapters; empty for nothing."""
    return ", ".join(dict.fromkeys(method.needs for method, _ in setting.methods() if method.needs))
