"""References of methods and software in BibTeX, one entry per paper in ``references.bib``.

A declaration gives the address of its source (`Method.paper`), and the entry with the same ``url``
is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from gks_eval.errors import UsageError
from gks_eval.method.declaration import CONTROL, Method
from gks_eval.method.registry import MERGES, ROUTERS, RULES, Registry

__all__ = ["HARNESS", "Reference", "references", "source_of", "used_by"]

HARNESS: Final = "eval-harness"
"""The key of lm-evaluation-harness, the first entry that is software."""
_PACKAGE: Final = "gks-eval"
_PAPER: Final = "bagherifard2025"
_PEFT: Final = "peft"
_HAAR: Final = "mezzadri2007"  # of general=rotated

_ENTRY = re.compile(r"@(\w+)\{([^,]+),\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)
_ADDRESS = re.compile(r"https?://[^\s,;]+")
_NOT_IN_URL: Final = dict.fromkeys(map(ord, "{}\\"))
_SPECIAL = re.compile(r"[\\{}$&#^_~%]")
# BibTeX counts a brace even after a backslash.
_ESCAPED: Final = {
    "\\": r"\textbackslash{}",
    "^": r"\^{}",
    "~": r"\~{}",
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
}


@dataclass(frozen=True)
class Reference:
    r"""One entry.

    Attributes:
        key: What ``\cite`` names.
        kind: The entry's type, such as ``inproceedings``.
        fields: By name, as BibTeX writes them.
    """

    key: str
    kind: str
    fields: Mapping[str, str]

    def bibtex(self) -> str:
        """Return the entry."""
        lines = [f"  {name} = {{{value}}}," for name, value in self.fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}", ""])

    def text(self) -> str:
        """Return the entry as one line: authors, title, where, year and address."""
        order = ("author", "title", "booktitle", "journal", "publisher", "year", "note", "url")
        given = {name: self.fields[name] for name in order if name in self.fields}
        if "author" in given:
            given["author"] = given["author"].replace(" and ", "; ")
        return ". ".join(_plain(value) for value in given.values())


@cache
def references() -> dict[str, Reference]:
    """Return this package's entries by key."""
    text = resources.files("gks_eval.method").joinpath("references.bib").read_text("utf-8")
    return {
        key: Reference(key, kind, dict(_FIELD.findall(body)))
        for kind, key, body in _ENTRY.findall(text)
    }


def source_of(method: Method, kind: str) -> Reference | None:
    """Return the reference of a method; None for a control, which has no paper.

    A source without an entry in ``references.bib`` gets an entry of type ``misc``.

    Args:
        method: A rule, router or merge.
        kind: ``rule``, ``router`` or ``merge``.
    """
    if method.paper == CONTROL:
        return None
    addresses = _ADDRESS.findall(method.paper)
    for reference in references().values():
        if reference.fields.get("url") in addresses:
            return reference
    title = _ADDRESS.sub("", method.paper).strip(" ,;") or method.name
    fields = {"title": f"{{{_escaped(title)}}}"}
    if addresses:
        fields["url"] = addresses[0].translate(_NOT_IN_URL)
    fields["note"] = _escaped(f"{kind} {method.name}")
    return Reference(f"{kind}-{re.sub('[^A-Za-z0-9]+', '-', method.name)}", "misc", fields)


def used_by(recorded: Mapping[str, Any]) -> tuple[list[Reference], list[str]]:
    """Return the references of one run, and the methods whose package is not installed.

    Args:
        recorded: What results record under ``gks_eval``: setting, family and versions. Empty for
            the run of another model, for which only lm-eval's reference is returned.
    """
    setting = _mapping(recorded.get("setting"))
    versions = _mapping(recorded.get("versions"))
    found: list[Reference] = []
    missing: list[str] = []
    known = references()
    if setting.get("router", "none") != "none":
        found.append(known[_PAPER])
        for registry, name in _methods(setting, recorded.get("family")):
            try:
                source = source_of(registry.get(name), registry.kind)
            except UsageError:
                missing.append(f"{registry.kind}={name}")
            else:
                found += [source] if source else []
        if setting.get("general") == "rotated":
            found.append(known[_HAAR])
        found.append(_of_version(known[_PEFT], versions.get("peft")))
    if setting:
        found.append(_of_version(known[_PACKAGE], versions.get("gks-eval")))
    found.append(_of_version(known[HARNESS], versions.get("lm-eval")))
    return found, missing


def _methods(setting: Mapping[str, Any], family: object) -> Iterator[tuple[Registry[Any], str]]:
    if isinstance(rule := setting.get("rule"), str):
        yield RULES, rule
    router = str(setting.get("router"))
    kind, colon, name = router.partition(":")
    if colon:
        if kind == "merge":
            yield MERGES, name
    elif router in ROUTERS or family == "routers":  # any other word names an expert
        yield ROUTERS, router


def _of_version(reference: Reference, version: object) -> Reference:
    if not isinstance(version, str):
        return reference
    return replace(reference, fields={**reference.fields, "note": f"Version {_escaped(version)}"})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _escaped(text: str) -> str:
    one_line = " ".join(text.split())
    return _SPECIAL.sub(lambda found: _ESCAPED.get(found[0], "\\" + found[0]), one_line)


def _plain(value: str) -> str:
    for character, written in _ESCAPED.items():
        value = value.replace(written, f"\\{character}")
    return re.sub(r"\\([\\^~{}$&#_%])|[{}]", r"\1", value)
