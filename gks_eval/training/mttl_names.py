"""MTTL's names of layers -> transformers' names.

MTTL's libraries of Phi-2 name the same layer in three ways, each with or without a leading
``model.`` (which Lightning adds once more):

- ``model.layers.N.self_attn.q_proj``: transformers' own names, N from 0.
- ``transformer.h.N.mixer.Wqkv``: the first code on the hub, N from 0.
- ``layers.N.mixer.Wqkv``: the code before that, one sequence in which 0 is the embedding, so that
  the N of the layers starts at 1.

The two older codes call the attention ``mixer``, its output ``out_proj``, and have one layer
``Wqkv`` for queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from gks_eval.errors import LibraryError

__all__ = ["FUSED", "transformers_names"]

FUSED: Final = ".self_attn.Wqkv"
"""How the name of a layer ends that transformers has as q_proj, k_proj and v_proj."""

_LAYER: Final = re.compile(
    r"(?:model\.)*(?P<stem>layers|transformer\.h)\.(?P<number>\d{1,5})\.(?P<rest>.+)"
)
_MIXER: Final = {"mixer.Wqkv": FUSED.removeprefix("."), "mixer.out_proj": "self_attn.dense"}
_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "dense")
_PHI_MLP: Final = ("mlp.fc1", "mlp.fc2")
_MLP: Final = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
_KNOWN: Final = {*(f"self_attn.{n}" for n in _ATTENTION), *_PHI_MLP, *(f"mlp.{n}" for n in _MLP)}


def transformers_names(
    layers: Iterable[str], where: str, of_base: Collection[str] = ()
) -> dict[str, str]:
    """Return the name in transformers of each layer of one expert.

    Args:
        layers: MTTL's names. The ``mlp`` of ``layers.N`` is counted like the attention next to it:
            from 1 if that is called ``mixer``.
        where: Names the checkpoint in messages.
        of_base: Names of the base's linear layers, if they are known; all of these are accepted.

    Raises:
        LibraryError: A name is unknown, or two names stand for one layer.
    """
    layers = list(layers)
    matches = {layer: _LAYER.fullmatch(layer) for layer in layers}
    from_one = any(
        match and match["stem"] == "layers" and match["rest"] in _MIXER
        for match in matches.values()
    )
    names: dict[str, str] = {}
    for layer, match in matches.items():
        name = _name(match, from_one) if match else None
        if name is None:
            plain = (layer, layer.removeprefix("model."))
            name = next((one for one in plain if one in of_base), None)
        if name is None:
            raise LibraryError(
                f"{where}: {layer:.200} is no layer name that conversion knows; rename it as "
                "transformers does (model.layers.0.self_attn.q_proj), or give --base-model a local "
                "folder of a model that has this layer."
            )
        if name in names.values():
            first = next(one for one, other in names.items() if other == name)
            raise LibraryError(
                f"{where}: {first:.200} and {layer:.200} are both {name}; keep one of them."
            )
        names[layer] = name
    return names


def _name(match: re.Match[str], from_one: bool) -> str | None:
    """Return transformers' name; None if the naming does not have this layer."""
    number, rest = int(match["number"]), match["rest"]
    if match["stem"] == "transformer.h":
        known = rest in _MIXER or rest in _PHI_MLP
    else:
        counts_from_one = rest in _MIXER or (from_one and rest in _PHI_MLP)
        number -= counts_from_one
        known = number >= 0 and (counts_from_one or rest in _KNOWN)
    return f"model.layers.{number}.{_MIXER.get(rest, rest)}" if known else None
