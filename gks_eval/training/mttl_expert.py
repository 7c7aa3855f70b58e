"""One expert as MTTL stores it: factors, rank, scaling and ties.

MTTL (Ostapenko et al. 2024, arXiv:2405.11157) stores ``lora_a`` (K, R) and ``lora_b`` (R, D), so
that the update of a layer is ``dW = (alpha / R) (lora_a lora_b)^T``: the factors are the transposes
of PEFT's. A fused ``Wqkv`` (3D, K) has the rows of queries, then keys, then values. It becomes
three layers that share A and divide the rows of B.

``tie_params`` is a regular expression over names of parameters: those that it matches under one
parent share A, and Arrow takes one prototype for their layers (``tie_op``: ``concat`` or ``sum``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import regex

from gks_eval.errors import LibraryError
from gks_eval.library.tied import TiedLayers
from gks_eval.method.declaration import TieOp
from gks_eval.method.lora import LoraPair
from gks_eval.training.mttl_names import FUSED, transformers_names
from gks_eval.training.pickles import load_pickled, tensors_of

if TYPE_CHECKING:
    import torch

__all__ = ["MttlExpert", "peft_factors", "read_expert", "tied_parameters"]

_FACTOR: Final = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[ab])(?:\.weight)?")
_MATCH_SECONDS: Final = 0.5
Factors = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True)
class MttlExpert:
    """An expert in PEFT's terms.

    Attributes:
        pairs: Its updates, by transformers' names of the layers.
        tied: Groups of layers that share one prototype.
    """

    pairs: Mapping[str, LoraPair]
    tied: tuple[TiedLayers, ...]


def read_expert(checkpoint: Path, of_base: Collection[str] = ()) -> MttlExpert:
    """Read a checkpoint and the ``.meta`` file next to it.

    Args:
        checkpoint: Of an expert library, or of Lightning.
        of_base: Names of the base's linear layers, if they are known.

    Raises:
        LibraryError: The file is broken, is no LoRA expert, or has unknown layers.
    """
    content = load_pickled(checkpoint)
    where, places = str(checkpoint), _metadata(content, checkpoint)
    rank, alpha = _rank_and_alpha(places, checkpoint)
    pattern = next((p["tie_params"] for p in places if p.get("tie_params")), None)
    op: TieOp | Any = next((p["tie_op"] for p in places if p.get("tie_op")), "concat")
    if op not in get_args(TieOp):
        raise LibraryError(f"{where}: tie_op is {op!r:.40}; only concat and sum are known.")
    tensors = tensors_of(content, checkpoint)
    tied: list[TiedLayers] = []
    if pattern is not None:
        layers = dict.fromkeys(m["layer"] for key in tensors if (m := _FACTOR.fullmatch(key)))
        tied = [TiedLayers(op, group) for group in tied_parameters(layers, str(pattern), where)]
    factors, groups = peft_factors(tensors, where, tied, of_base)
    ranks = {A.shape[0] for A, _ in factors.values()}
    if ranks != {rank}:
        raise LibraryError(f"{where}: its config says rank {rank}, its factors have {ranks}.")
    pairs = {layer: LoraPair(A, B, alpha / rank) for layer, (A, B) in factors.items()}
    return MttlExpert(pairs, groups)


def peft_factors(
    tensors: Mapping[str, torch.Tensor],
    where: str,
    tied: Sequence[TiedLayers] = (),
    of_base: Collection[str] = (),
) -> tuple[dict[str, Factors], tuple[TiedLayers, ...]]:
    """Return A (R, K) and B (D, R) of each transformers layer, and the groups of tied layers.

    Args:
        tensors: ``<layer>.lora_a`` (K, R) and ``<layer>.lora_b`` (R, D); others are refused.
        where: Names the checkpoint in messages.
        tied: Groups of layers that share A, by MTTL's names; A may be stored with one of them.
        of_base: As for `transformers_names`.

    Raises:
        LibraryError: A tensor is no LoRA factor, a layer is unknown or lacks a factor, or shapes do
            not match.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise LibraryError(f"{where}: {key} is no LoRA factor; only LoRA experts convert.")
        found.setdefault(match["layer"], {})[match["factor"]] = tensor
    for group in tied:
        shared = next((found[layer]["a"] for layer in group.layers if "a" in found[layer]), None)
        if shared is not None:
            for layer in group.layers:
                found[layer].setdefault("a", shared)
    names = transformers_names(found, where, of_base)
    factors: dict[str, Factors] = {}
    groups = [TiedLayers(one.op, tuple(names[layer] for layer in one.layers)) for one in tied]
    for layer, pair in found.items():
        if set(pair) != {"a", "b"} or pair["a"].ndim != 2 or pair["b"].ndim != 2:
            raise LibraryError(f"{where}: {layer} lacks lora_a or lora_b; download it again.")
        # One copy of A per layer: safetensors refuses tensors that share memory.
        A_RK, B_DR = pair["a"].T.clone().contiguous(), pair["b"].T.contiguous()
        if A_RK.shape[0] != B_DR.shape[1]:
            raise LibraryError(
                f"{where}: {layer} has lora_a {tuple(pair['a'].shape)} and lora_b"
                f" {tuple(pair['b'].shape)}, whose ranks differ; download it again."
            )
        name = names[layer]
        parts = _parts(name)
        if taken := sorted(factors.keys() & set(parts)):
            raise LibraryError(
                f"{where}: {layer:.200} and another of its layers are both {taken[0]}; keep one of "
                "them."
            )
        if len(parts) == 1:
            factors[name] = (A_RK, B_DR)
            continue
        if B_DR.shape[0] % 3:
            raise LibraryError(f"{where}: {layer} has {B_DR.shape[0]} rows, not three equal parts.")
        for part, rows_DR in zip(parts, B_DR.chunk(3), strict=True):
            factors[part] = (A_RK.clone(), rows_DR.contiguous())
        groups.append(TiedLayers("concat", parts))
    return factors, tuple(groups)


def _parts(name: str) -> tuple[str, ...]:
    """Return the layers that transformers has for one of MTTL's."""
    if not name.endswith(FUSED):
        return (name,)
    return tuple(f"{name.removesuffix('Wqkv')}{part}_proj" for part in "qkv")


def tied_parameters(layers: Iterable[str], pattern: str, where: str) -> list[tuple[str, ...]]:
    """Return the groups of layers whose A's are tied, by the rule of MTTL.

    The A's whose names the pattern matches are tied if the text before the match is the same.

    Args:
        layers: MTTL's names of the layers.
        pattern: ``tie_params``.
        where: Names the checkpoint in messages.

    Raises:
        LibraryError: The pattern is malformed, takes too long, or ties B's.
    """
    groups: dict[str, list[str]] = {}
    try:
        compiled = regex.compile(pattern)
        for layer in layers:
            if match := compiled.search(f"{layer}.lora_a", timeout=_MATCH_SECONDS):
                groups.setdefault(match.string[: match.start()], []).append(layer)
            if compiled.search(f"{layer}.lora_b", timeout=_MATCH_SECONDS):
                raise LibraryError(
                    f"{where}: tie_params {pattern!r:.80} ties lora_b; only tied lora_a convert."
                )
    except (regex.error, TimeoutError, RecursionError, OverflowError) as error:
        raise LibraryError(
            f"{where}: tie_params {pattern!r:.80} cannot be matched ({error or 'it takes too long'}"
            "); correct the .meta file."
        ) from None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _metadata(content: Mapping[str, Any], checkpoint: Path) -> list[Mapping[str, Any]]:
    """Return everything that can hold the expert's configuration, in order of precedence."""
    meta = checkpoint.with_suffix(".meta")
    places = [content.get("expert_info"), content.get("hyper_parameters")]
    if meta.is_file():
        places.insert(0, load_pickled(meta))
    found: list[Any] = []
    for place in places:
        if isinstance(place, Mapping):
            found += [place.get("expert_config"), place.get("training_config"), place]
    return [place for place in found if isinstance(place, Mapping)]


def _rank_and_alpha(places: Iterable[Mapping[str, Any]], checkpoint: Path) -> tuple[int, float]:
    for place in places:
        if "lora_rank" in place and "lora_alpha" in place:
            given = place["lora_rank"], place["lora_alpha"]
            try:
                rank, alpha = int(given[0]), float(given[1])
            except (TypeError, ValueError, OverflowError):
                rank, alpha = 0, math.nan
            if rank < 1 or not math.isfinite(alpha):
                raise LibraryError(
                    f"{checkpoint}: lora_rank is {given[0]!r:.40} and lora_alpha {given[1]!r:.40}; "
                    "correct them in the .meta file to a whole number above 0 and a number."
                )
            return rank, alpha
    raise LibraryError(
        f"{checkpoint}: neither this file nor {checkpoint.with_suffix('.meta').name} names "
        "lora_rank and lora_alpha; put the library's .meta file there."
    )
