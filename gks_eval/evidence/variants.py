"""Names the runs of one folder by the model arguments that differ."""

from __future__ import annotations

from collections.abc import Mapping

from gks_eval.util.json_file import parse_json

__all__ = ["variant_names"]

_MOST = 40


def variant_names(models: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return a short name per run, such as `dtype=float16`, or the run's key if that is too long.

    Args:
        models: The recorded model types and arguments, by run key.
    """
    parsed = {key: {"model": kind, **_arguments(text)} for key, (kind, text) in models.items()}
    names = {argument for found in parsed.values() for argument in found}
    differing = sorted(
        name for name in names if len({found.get(name) for found in parsed.values()}) > 1
    )
    short = {
        key: ",".join(f"{name}={found[name]}" for name in differing if name in found)
        for key, found in parsed.items()
    }
    usable = all(len(text) <= _MOST for text in short.values())
    if not usable or len(set(short.values())) < len(short) or "" in short.values():
        return {key: key for key in models}
    return short


def _arguments(text: str) -> dict[str, str]:
    if text.startswith("{"):
        try:
            found = parse_json(text.encode("utf-8", "replace"), constants=True)
            return {str(name): str(value) for name, value in found.items()}
        except (ValueError, AttributeError):
            return {"": text}
    pairs = (part.partition("=") for part in text.split(","))
    return {name.strip(): value.strip() for name, _, value in pairs}
