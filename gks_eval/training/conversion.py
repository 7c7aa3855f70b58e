"""Adapters in other formats -> PEFT folders and a library.

MTTL (Ostapenko et al. 2024, arXiv:2405.11157) stores an expert as ``lora_a`` (K, R) and ``lora_b``
(R, D), so that the update of a layer is ``dW = (alpha / R) (lora_a lora_b)^T``: its factors are
the transposes of PEFT's. Its Phi-2 has one linear layer ``Wqkv`` (3D, K) whose output is the
queries, then the keys, then the values; transformers' Phi has three layers. A fused adapter
becomes three that share A and divide the rows of B, which is the same map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import LibraryError, UsageError
from gks_eval.library.peft_adapter import PICKLED, RECORD, WEIGHTS_FILE
from gks_eval.library.writer import check_folder_names, write_adapter, write_manifest
from gks_eval.method.lora import LoraPair
from gks_eval.training.pickles import load_pickled, tensors_of
from gks_eval.util.files import sha256_of
from gks_eval.util.paths import MANIFEST

if TYPE_CHECKING:
    import torch

__all__ = ["Converted", "convert_bin", "convert_mttl", "peft_factors"]

_FACTOR = re.compile(r"(?:^|\.)lora_([ab])(?:\.weight)?$")
# MTTL's Phi-2 is the model's original code; transformers has other names for its parts.
_RENAMED = (
    (re.compile(r"^(?:model\.)?transformer\.h\.(\d+)\.mixer\."), r"model.layers.\1.self_attn."),
    (re.compile(r"^(?:model\.)?layers\.(\d+)\."), r"model.layers.\1."),
    (re.compile(r"\.out_proj$"), ".dense"),
)


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        experts: Names of the adapters.
        manifest: The library's manifest; None if the folder had one already.
    """

    experts: tuple[str, ...]
    manifest: Path | None


def peft_factors(
    tensors: Mapping[str, torch.Tensor], where: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A (R, K) and B (D, R) of each transformers layer from MTTL's tensors.

    Args:
        tensors: ``<layer>.lora_a`` (K, R) and ``<layer>.lora_b`` (R, D); others are refused.
        where: Names the checkpoint in messages.

    Raises:
        LibraryError: A tensor is no LoRA factor, a layer lacks one, or shapes do not match.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR.search(key)
        if match is None:
            raise LibraryError(f"{where}: {key} is no LoRA factor; only LoRA experts convert.")
        found.setdefault(key[: match.start()], {})[match[1]] = tensor
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer, pair in found.items():
        if set(pair) != {"a", "b"} or pair["a"].ndim != 2 or pair["b"].ndim != 2:
            raise LibraryError(f"{where}: {layer} lacks lora_a or lora_b; download it again.")
        A_RK, B_DR = pair["a"].T.contiguous(), pair["b"].T.contiguous()
        if A_RK.shape[0] != B_DR.shape[1]:
            raise LibraryError(
                f"{where}: {layer} has lora_a {tuple(pair['a'].shape)} and lora_b"
                f" {tuple(pair['b'].shape)}, whose ranks differ; download it again."
            )
        name = _transformers_name(layer)
        if not name.endswith(".Wqkv"):
            factors[name] = (A_RK, B_DR)
            continue
        if B_DR.shape[0] % 3:
            raise LibraryError(f"{where}: {layer} has {B_DR.shape[0]} rows, not three equal parts.")
        for part, rows_DR in zip("qkv", B_DR.chunk(3), strict=True):
            # One copy of A per layer: safetensors refuses tensors that share memory.
            layer_part = f"{name.removesuffix('Wqkv')}{part}_proj"
            factors[layer_part] = (A_RK.clone(), rows_DR.contiguous())
    return factors


def convert_mttl(
    source: Path, output: Path, *, base_model: str, numbered: str | None = None
) -> Converted:
    """Turn an MTTL expert library, or a single Lightning checkpoint, into a library.

    Args:
        source: A folder with ``NAME.ckpt`` (and ``NAME.meta``), or one ``.ckpt``.
        output: The library's folder.
        base_model: The base that the experts were trained on.
        numbered: Names the experts ``NUMBERED_0``, ``NUMBERED_1``, ... in the natural order of
            their names (2 before 10); None keeps the names.

    Raises:
        LibraryError: There is no checkpoint, or one cannot be converted.
        ResourceError: The folder cannot be written.
    """
    checkpoints = sorted(source.glob("*.ckpt"), key=_natural) if source.is_dir() else [source]
    if not checkpoints:
        raise LibraryError(f"{source}: has no .ckpt; give an MTTL library's folder or checkpoint.")
    names = [
        f"{numbered}_{number}" if numbered else _plain_name(checkpoint.stem)
        for number, checkpoint in enumerate(checkpoints)
    ]
    check_folder_names(names, str(source))
    for name, checkpoint in zip(names, checkpoints, strict=True):
        content = load_pickled(checkpoint)
        rank, alpha = _rank_and_alpha(content, checkpoint)
        where = str(checkpoint)
        tensors = {
            re.sub(r"^model\.(?=transformer|model)", "", key): value
            for key, value in tensors_of(content, checkpoint).items()
        }
        factors = peft_factors(tensors, where)
        ranks = {A.shape[0] for A, _ in factors.values()}
        if ranks != {rank}:
            raise LibraryError(f"{where}: its config says rank {rank}, its factors have {ranks}.")
        write_adapter(
            output / "experts" / name,
            {layer: LoraPair(A, B, alpha / rank) for layer, (A, B) in factors.items()},
            base_model=base_model,
            config={"target_modules": sorted({layer.rpartition(".")[2] for layer in factors})},
            record=(
                RECORD,
                {"converted_from": checkpoint.name, "source_sha256": sha256_of(checkpoint)},
            ),
        )
    return Converted(tuple(names), _manifest(output, names, base_model, source))


def convert_bin(folder: Path) -> Path:
    """Turn a PEFT folder's ``adapter_model.bin`` into safetensors in the same folder.

    Args:
        folder: A folder with adapter_config.json and adapter_model.bin.

    Returns:
        The safetensors file; the pickle is kept.

    Raises:
        LibraryError: There is no pickle, or it holds more than tensors.
        ResourceError: The folder cannot be written.
    """
    from safetensors.torch import save_file

    from gks_eval.util.files import replaced_file

    pickled, target = folder / PICKLED[0], folder / WEIGHTS_FILE
    if target.is_file():
        raise UsageError(f"{target}: exists already; there is nothing to convert.")
    tensors = tensors_of(load_pickled(pickled), pickled)
    with replaced_file(target) as aside:
        # Tensors that share memory become separate tensors on disk.
        plain = {key: tensor.clone().contiguous() for key, tensor in sorted(tensors.items())}
        save_file(plain, aside, metadata={"format": "pt"})
    return target


def _transformers_name(layer: str) -> str:
    for pattern, name in _RENAMED:
        layer = pattern.sub(name, layer)
    return layer


def _rank_and_alpha(content: Mapping[str, Any], checkpoint: Path) -> tuple[int, float]:
    meta = checkpoint.with_suffix(".meta")
    places: list[Any] = [content.get("hyper_parameters"), content.get("expert_info")]
    if meta.is_file():
        places.append(load_pickled(meta))
    for place in list(places):
        if isinstance(place, Mapping):
            places += [place.get("expert_config"), place.get("training_config")]
    for place in places:
        if isinstance(place, Mapping) and "lora_rank" in place and "lora_alpha" in place:
            return int(place["lora_rank"]), float(place["lora_alpha"])
    raise LibraryError(
        f"{checkpoint}: neither this file nor {meta.name} names lora_rank and lora_alpha; "
        "put the library's .meta file there."
    )


def _manifest(output: Path, names: list[str], base_model: str, source: Path) -> Path | None:
    path = output / MANIFEST
    if path.is_file():
        return None
    manifest = {
        "base_model": base_model,
        "experts": {name: f"experts/{name}" for name in names},
        "provenance": {"converted_from": source.name, "format": "mttl"},
    }
    return write_manifest(output, manifest, "Written by `gks-eval convert mttl`.")


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("_.-") or "expert"


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.stem)]
