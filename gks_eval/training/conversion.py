"""Adapters in other formats -> PEFT folders and a library."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gks_eval.errors import LibraryError, UsageError
from gks_eval.library.fit import check_shapes, linear_shapes
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import PICKLED, RECORD, WEIGHTS_FILE
from gks_eval.library.tied import TiedLayers, manifest_entries
from gks_eval.library.writer import check_folder_names, write_adapter, write_manifest
from gks_eval.model.base_model import resolve_base
from gks_eval.model.load_base import local_outline
from gks_eval.training.mttl_expert import read_expert
from gks_eval.training.pickles import load_pickled, tensors_of
from gks_eval.util.files import sha256_of
from gks_eval.util.paths import MANIFEST
from gks_eval.util.yaml import load_typed

__all__ = ["Converted", "convert_bin", "convert_mttl"]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        experts: Names of the adapters.
        manifest: The library's manifest; None if the folder had one already.
        checked: Whether the base's layers were known, and the experts fit them.
        tied: The layers that share one prototype, as ``tied_prototypes`` names them.
    """

    experts: tuple[str, ...]
    manifest: Path | None
    checked: bool
    tied: tuple[tuple[str, ...], ...]


def convert_mttl(
    source: Path, output: Path, *, base_model: str, numbered: str | None = None
) -> Converted:
    """Turn an MTTL expert library, or a single Lightning checkpoint, into a library.

    All checkpoints are read and checked before anything is written.

    Args:
        source: A folder with ``NAME.ckpt`` (and ``NAME.meta``), or one ``.ckpt``.
        output: The library's folder.
        base_model: The base that the experts were trained on. If this machine has its
            configuration, the experts must fit its layers.
        numbered: Names the experts ``NUMBERED_0``, ``NUMBERED_1``, ... in the natural order of
            their names (2 before 10); None keeps the names.

    Raises:
        UsageError: No base is named.
        LibraryError: There is no checkpoint, one cannot be converted, or experts tie different
            layers.
        CompatibilityError: An expert does not fit the base.
        ResourceError: The folder cannot be written.
    """
    if not base_model.strip():
        raise UsageError("--base-model is empty; name the model that the experts were trained on.")
    checkpoints = sorted(source.glob("*.ckpt"), key=_natural) if source.is_dir() else [source]
    if not checkpoints:
        raise LibraryError(f"{source}: has no .ckpt; give an MTTL library's folder or checkpoint.")
    names = [
        f"{numbered}_{number}" if numbered else _plain_name(checkpoint.stem)
        for number, checkpoint in enumerate(checkpoints)
    ]
    check_folder_names(names, str(source))
    outline = local_outline(resolve_base(base_model))
    of_base = [] if outline is None else list(linear_shapes(outline))
    ties: dict[tuple[TiedLayers, ...], Path] = {}
    layers: dict[str, None] = {}
    for checkpoint in checkpoints:
        expert = read_expert(checkpoint, of_base)
        if outline is not None:
            where = f"{checkpoint} does not fit {base_model}"
            check_shapes(expert.pairs, outline, where, "another model")
        layers |= dict.fromkeys(expert.pairs)
        ties.setdefault(tuple(sorted(expert.tied, key=lambda one: one.name)), checkpoint)
    if len(ties) > 1:
        one, other = list(ties.values())[:2]
        raise LibraryError(
            f"{source}: {one.name} and {other.name} tie the parameters of different layers, and "
            "the experts of one library share their ties; convert them into separate libraries."
        )
    entries = manifest_entries(next(iter(ties)), layers)
    _check_manifest(output, entries)
    for name, checkpoint in zip(names, checkpoints, strict=True):
        expert = read_expert(checkpoint, of_base)
        write_adapter(
            output / "experts" / name,
            expert.pairs,
            base_model=base_model,
            config={"target_modules": _targets(expert.pairs, of_base)},
            record=(
                RECORD,
                {"converted_from": checkpoint.name, "source_sha256": sha256_of(checkpoint)},
            ),
        )
    manifest = _manifest(output, names, base_model, source, entries)
    tied = tuple(tuple(entry["layers"]) for entry in entries)
    return Converted(tuple(names), manifest, outline is not None, tied)


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


def _targets(layers: Collection[str], of_base: Collection[str]) -> list[str]:
    """Return ``target_modules``: last parts of names, or whole names if layers are left out."""
    last = {layer.rpartition(".")[2] for layer in layers}
    left_out = {layer for layer in of_base if layer.rpartition(".")[2] in last} - {*layers}
    return sorted(layers if left_out else last)


def _check_manifest(output: Path, entries: list[dict[str, Any]]) -> None:
    """Refuse a manifest that would stay and does not tie what the experts tie."""
    path = output / MANIFEST
    if not entries or not path.is_file():
        return
    held = [(one.op, {*one.layers}) for one in load_typed(path, LibraryConfig).tied_prototypes]
    if any((entry["op"], {*entry["layers"]}) not in held for entry in entries):
        raise LibraryError(
            f"{path}: lacks the tied layers of these experts; write tied_prototypes: {entries} "
            "into it, or convert into another folder."
        )


def _manifest(
    output: Path, names: list[str], base_model: str, source: Path, ties: list[dict[str, Any]]
) -> Path | None:
    if (output / MANIFEST).is_file():
        return None
    manifest = {
        "base_model": base_model,
        "experts": {name: f"experts/{name}" for name in names},
        **({"tied_prototypes": ties} if ties else {}),
        "provenance": {"converted_from": source.name, "format": "mttl"},
    }
    return write_manifest(output, manifest, "Written by `gks-eval convert mttl`.")


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("_.-") or "expert"


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.stem)]
