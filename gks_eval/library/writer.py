"""Writes adapter folders and ``library.yaml``, for training, conversion and export."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gks_eval.errors import LibraryError
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import CONFIG_FILE, WEIGHTS_FILE
from gks_eval.method.lora import LoraPair
from gks_eval.util.files import replaced_folder, sha256_of, write_text
from gks_eval.util.json_file import parse_json
from gks_eval.util.paths import MANIFEST, unportable

__all__ = ["check_folder_names", "write_adapter", "write_manifest"]


def check_folder_names(names: Iterable[str], where: str) -> None:
    """Check that the names of adapters can be folders on every system.

    Args:
        names: The adapters' names.
        where: What messages start with.

    Raises:
        LibraryError: Windows reserves a name, or two names differ only in case.
    """
    for name, why in unportable(names):
        raise LibraryError(f"{where}: {name!r:.80} {why}; give that expert another name.")


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    *,
    base_model: str,
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    record: tuple[str, Mapping[str, Any]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """Write one adapter as a PEFT folder, whole or not at all.

    The same arguments give the same bytes: keys are sorted, and no timestamp is written.

    Args:
        folder: The adapter's folder; it is replaced if it exists.
        pairs: Its updates by the names of the base's layers, in the dtype to save.
        base_model: Name of the base for the adapter's config.
        config: Further fields of the LoraConfig; ``target_modules`` must be one of them. Ranks and
            scalings follow from `pairs`.
        metadata: Texts for the header of the weights file.
        record: Name and content of a JSON file; the hash of the weights is added.
        texts: Further files by name.

    Returns:
        The SHA-256 of the weights file, hex.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save

    fields = {**config, **_ranks(pairs)}
    content = LoraConfig(
        **{
            "bias": "none",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            **fields,
        }
    ).to_dict()
    content |= fields  # PEFT makes sets of names, whose order is arbitrary
    tensors = {
        f"base_model.model.{layer}.lora_{letter}.weight": factor.contiguous()
        for layer, pair in sorted(pairs.items())
        for letter, factor in (("A", pair.A), ("B", pair.B))
    }
    with replaced_folder(folder) as aside:
        weights = save(tensors, metadata={"format": "pt", **(metadata or {})})
        (aside / WEIGHTS_FILE).write_bytes(_in_order(weights))
        sha256 = sha256_of(aside / WEIGHTS_FILE)
        _dump(aside / CONFIG_FILE, content)
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf-8", newline="")
        if record is not None:
            _dump(aside / record[0], {**record[1], "sha256": sha256})
    return sha256


def write_manifest(folder: Path, content: Mapping[str, Any], remark: str) -> Path:
    """Write ``library.yaml``.

    Args:
        folder: The library's folder.
        content: The fields of `LibraryConfig`.
        remark: A comment for its first line.

    Returns:
        The file.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    LibraryConfig.model_validate(content)
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    write_text(folder / MANIFEST, f"# {remark}\n{text}")
    return folder / MANIFEST


def _ranks(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """Return the fields of a LoraConfig that give every layer its rank and scaling.

    The commonest values become ``r`` and ``lora_alpha``. Other layers get patterns that match from
    the start of their names, so that no pattern matches another layer.
    """
    ranks = {layer: pair.rank for layer, pair in pairs.items()}
    alphas = {layer: _alpha(pair) for layer, pair in pairs.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{layer}": r for layer, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {f"^{layer}": a for layer, a in sorted(alphas.items()) if a != alpha},
    }


def _alpha(pair: LoraPair) -> float:
    # Twelve digits undo the rounding of alpha / rank; float32 factors have seven.
    alpha = float(f"{pair.scaling * pair.rank:.12g}")
    return int(alpha) if alpha.is_integer() else alpha


def _commonest(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _in_order(weights: bytes) -> bytes:
    """Return a safetensors file with sorted metadata; safetensors writes it in any order."""
    start, length = 8, int.from_bytes(weights[:8], "little")
    header = parse_json(weights[start : start + length])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + weights[start + length :]


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    # PEFT's configuration holds a few enums and sets.
    text = json.dumps(value, indent=2, sort_keys=True, default=_plain)
    path.write_text(text + "\n", encoding="utf-8", newline="")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
