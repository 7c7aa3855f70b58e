"""Cross-field checks of a recipe.

pydantic runs cross-field checks only if every field is valid, so their errors would appear in a
second run. These checks read the recipe as written, and are reported together with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gks_eval.util.paths import unportable

__all__ = ["as_input", "cross_field_faults"]

_ONLY_HUB = ("config", "data_files", "revision", "split")
_Fault = tuple[tuple[str, ...], str]


def cross_field_faults(recipe: Any) -> list[InitErrorDetails]:
    """Return the errors that concern several fields of a recipe.

    Args:
        recipe: As read from YAML; parts of the wrong type are skipped, pydantic reports them.
    """
    return [
        InitErrorDetails(
            type=PydanticCustomError("cross_field", "{what}", {"what": what}), loc=loc, input=None
        )
        for loc, what in _faults(recipe)
    ]


def as_input(fault: ErrorDetails) -> InitErrorDetails:
    """Convert an error found by pydantic so that it can be raised together with others."""
    again = InitErrorDetails(type=fault["type"], loc=fault["loc"], input=fault["input"])
    if "ctx" in fault:
        again["ctx"] = fault["ctx"]
    return again


def _faults(recipe: Any) -> Iterator[_Fault]:
    if not isinstance(recipe, Mapping):
        return
    if recipe.get("experts") is None and recipe.get("general") is None:
        yield (), "a recipe trains `experts`, `general` adapters, or both"
    adapter, load = _mapping(recipe, "adapter"), _mapping(recipe, "load")
    if adapter.get("init") == "loftq" and load.get("quantization", "none") == "none":
        yield (
            ("adapter", "init"),
            "`init: loftq` needs a quantised base: `load: {quantization: nf4}`",
        )
    for kind in ("experts", "general"):
        if isinstance(recipe.get(kind), Mapping):
            yield from _section(kind, recipe[kind])


def _section(kind: str, section: Mapping[str, Any]) -> Iterator[_Fault]:
    data, members = _mapping(section, "data"), _mapping(section, "members")
    clusters = section.get("clusters") is not None
    yield from _place((kind, "data"), data)
    if kind == "experts":
        if bool(section.get("members")) == clusters:
            yield (kind,), "name the experts by `members` or by `clusters`, one of the two"
        prompt = section.get("prompt")
        if isinstance(prompt, str) and "{source}" not in prompt:
            yield (kind, "prompt"), "it must say where the source goes: {source}"
        if clusters and not members and not _placed(data):
            yield (kind,), "has no rows: give `data` a `file` or `hub`"
        column = _mapping(section, "clusters").get("column", "task_name")
        if clusters and column in [*_mapping(data, "where")]:
            place = (kind, "data", "where", str(column))
            yield place, "`clusters` choose the rows by this column; take it out of `where`"
    for name, why in unportable(map(str, members)):
        yield (kind, "members", name), f"{why}; choose another name"
    for name, member in members.items():
        if isinstance(member, Mapping):
            loc = (kind, "members", str(name))
            yield from _place(loc, member)
            if not _placed(member) and not _placed(data):
                yield loc, "has no rows: give it `file` or `hub`, or give `data` one"


def _place(loc: tuple[str, ...], place: Mapping[str, Any]) -> Iterator[_Fault]:
    if place.get("file") is None:
        return
    if place.get("hub") is not None:
        yield loc, "give `file` or `hub`, not both"
        return
    for key in _ONLY_HUB:
        if key in place:
            yield (*loc, key), "belongs to `hub`, not to `file`"


def _placed(place: Mapping[str, Any]) -> bool:
    return bool(place.get("file") or place.get("hub"))


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}
