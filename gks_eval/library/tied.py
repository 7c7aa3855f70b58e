"""Tied prototypes: which layers of a library share one prototype per expert.

Layers that share their A, such as the query, key and value layers that were one layer in another
implementation of the base, can be routed as that one layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gks_eval.errors import LibraryError
from gks_eval.library.manifest import TiedPrototypes
from gks_eval.method.declaration import TieOp

__all__ = ["TiedLayers", "in_words", "manifest_entries", "tied_gates", "tied_groups"]


@dataclass(frozen=True)
class TiedLayers:
    """Layers that share one prototype.

    Attributes:
        op: What it is made of, see `gks_eval.method.tied.joined`.
        layers: Their names, in the order in which they are joined.
    """

    op: TieOp
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return a name for the group."""
        return "+".join(self.layers)


def tied_groups(
    entries: Iterable[TiedPrototypes], shapes: Mapping[str, tuple[int, int]], manifest: Path
) -> dict[str, TiedLayers]:
    """Return the group of each layer that is in one.

    Args:
        entries: ``tied_prototypes`` of the manifest.
        shapes: (D, K) of every layer that an expert updates.
        manifest: The manifest, for messages.

    Raises:
        LibraryError: An entry ties nothing or names a layer that no group has, a layer is in two
            groups, or shapes differ.
    """
    found: dict[str, TiedLayers] = {}
    for entry in entries:
        groups = _groups(entry.layers, shapes)
        text = f"{manifest}: tied_prototypes {', '.join(entry.layers):.200}"
        if not groups:
            raise LibraryError(
                f"{text}: the experts update no two such layers under one parent; write the last "
                "parts of their names, such as q_proj, or leave the entry out."
            )
        for ending in entry.layers:
            if not any(_is_named(layer, ending) for group in groups for layer in group):
                raise LibraryError(
                    f"{text}: no group has a layer {ending:.200}; correct the name, or leave it "
                    "out."
                )
        for layers in groups:
            first = layers[0]
            for layer in layers:
                if layer in found:
                    raise LibraryError(f"{text}: {layer} is in two groups; name it in one.")
                one, other = shapes[first], shapes[layer]
                if one[1] != other[1] or (entry.op == "sum" and one != other):
                    raise LibraryError(
                        f"{text}: {first} has shape {one} and {layer} {other}, so they cannot "
                        f"share a prototype by {entry.op}; tie other layers."
                    )
                found[layer] = TiedLayers(entry.op, layers)
    return found


def tied_gates(tied: Mapping[str, TiedLayers], router: str) -> list[str]:
    """Return the names of the groups that share a vector prepared for a router.

    Layers that share a prototype share the gate of PHATGOOSE. Their mean activations are equal
    anyway if the layers read the same input.
    """
    return sorted({group.name for group in tied.values()}) if router == "phatgoose" else []


def in_words(entries: Sequence[TiedPrototypes]) -> str:
    """Return what a library's summary says about its tied layers; empty if it has none."""
    texts = [f"{' + '.join(entry.layers)} ({entry.op})" for entry in entries]
    return f"; one prototype for {', for '.join(texts)}" if texts else ""


def manifest_entries(tied: Sequence[TiedLayers], layers: Collection[str]) -> list[dict[str, Any]]:
    """Return ``tied_prototypes`` for a manifest: one entry for all groups of the same form.

    Args:
        tied: The groups.
        layers: All layers that the experts update.
    """
    forms = dict.fromkeys((group.op, _last_parts(group.layers)) for group in tied)
    by_form = [group for _, last in forms for group in _groups(last, layers)]
    if sorted(by_form) == sorted(group.layers for group in tied):
        return [{"layers": list(last), "op": op} for op, last in forms]
    return [{"layers": list(group.layers), "op": group.op} for group in tied]


def _groups(endings: Sequence[str], layers: Collection[str]) -> list[tuple[str, ...]]:
    """Return the groups of layers that differ only in which ending their names have."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for ending in endings:
            if _is_named(layer, ending):
                found.setdefault(layer.removesuffix(ending), []).append(ending)
    return [
        tuple(f"{parent}{ending}" for ending in endings if ending in own)
        for parent, own in found.items()
        if len(own) > 1
    ]


def _is_named(layer: str, ending: str) -> bool:
    return layer == ending or layer.endswith(f".{ending}")


def _last_parts(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names without what they have in common, up to a dot."""
    parts = [layer.split(".") for layer in layers]
    common = 0
    while all(len(one) > common + 1 and one[common] == parts[0][common] for one in parts):
        common += 1
    return tuple(".".join(one[common:]) for one in parts)
