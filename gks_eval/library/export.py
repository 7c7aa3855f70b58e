"""A library and a setting -> a library of plain PEFT adapters: what the setting adds to the base.

An export holds the residuals that a router mixes, one adapter per expert, or the single adapter of
a setting without a router (``expert:NAME``, ``merge:NAME``). ``library.yaml`` and the header of
each weights file record what was subtracted, so that it is not subtracted again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import LibraryError, UsageError
from gks_eval.library.card import CARD, Facts, model_card
from gks_eval.library.export_files import (
    EXPORTED,
    FILES,
    held_files,
    holds_files,
    written_files,
)
from gks_eval.library.export_pairs import exported_pairs
from gks_eval.library.load import Library, load_library
from gks_eval.library.peft_adapter import CONFIG_FILE, EXPORT, WEIGHTS_FILE, Adapter
from gks_eval.library.peft_check import check_with_peft
from gks_eval.library.prepared import VECTORS_FILES, vectors_folder, write_vectors
from gks_eval.library.target_fields import target_fields
from gks_eval.library.truncation import Truncation
from gks_eval.library.writer import check_folder_names, write_adapter, write_manifest
from gks_eval.method.setting import Setting, as_setting
from gks_eval.util.files import replaced_folder
from gks_eval.util.paths import MANIFEST
from gks_eval.util.versions import versions

__all__ = ["Exported", "export"]

_EXPERTS: Final = "experts"
_REMARK: Final = "Written by `gks-eval export`."


@dataclass(frozen=True)
class Exported:
    """What an export wrote, or found to be written already.

    Attributes:
        folder: The new library.
        adapters: The folder of each adapter, by name.
        truncation: The errors of truncating to ``rank``; None if nothing was truncated.
        kept: Whether the folder held this export already.
        files: All files of the export, relative to its folder.
    """

    folder: Path
    adapters: Mapping[str, Path]
    truncation: Truncation | None
    kept: bool
    files: tuple[str, ...]


def export(
    library: Library,
    setting: Setting | str,
    folder: str | Path,
    rank: int | None = None,
    *,
    license: str | None = None,
) -> Exported:
    """Write the adapters of a setting as a library of PEFT folders, whole or not at all.

    Args:
        library: Where the adapters come from.
        setting: What to export; as text, in the grid's grammar.
        folder: The new library's folder; it must not exist, be empty, or hold this export.
        rank: Truncates every update to this rank, by its SVD; by default updates are exact.
        license: License of the new adapters; by default the library's.

    Raises:
        UsageError: The setting has no adapter, or an argument has an invalid value.
        CompatibilityError: The adapters do not allow the setting.
        LibraryError: The folder holds something else, an adapter cannot be exported, or PEFT reads
            back a different update.
        ResourceError: The disk is full, or the folder cannot be written.
    """
    given = setting if isinstance(setting, str) else setting.router
    setting = library.check(as_setting(setting))
    folder = Path(folder).resolve()
    if not setting.uses_library:
        raise UsageError("setting base has no adapter to export; name another, such as gks:avg.")
    if rank is not None and rank < 1:
        raise UsageError(f"rank={rank} is below 1; give 1 or more, or leave it out.")
    if license and library.config.license and license != library.config.license:
        raise UsageError(
            f"license={license:.80} is not the license of library {library.name} "
            f"({library.config.license}); leave it out, or correct its {MANIFEST}."
        )
    names = tuple(name.replace(":", "-") for name in library.mixed_adapters(setting))
    check_folder_names(names, f"library {library.name}")
    _refuse_copies(library, setting)
    alone = setting.merge is not None or setting.expert is not None
    places = {names[0]: "."} if alone else {name: f"{_EXPERTS}/{name}" for name in names}
    record = _record(library, setting, rank)
    license = license or library.config.license
    manifest = {
        "base_model": library.config.base_model,
        "revision": library.config.revision,
        "experts": places,
        "load": library.config.load.model_dump(),
        "tied_prototypes": _ties(library) if not alone else None,
        "license": license,
        "provenance": {EXPORTED: record},
    }
    manifest = {key: value for key, value in manifest.items() if value is not None}
    folders = {name: folder / place for name, place in places.items()}
    if holds_files(folder):
        files = held_files(folder, manifest, _names(library, setting, places))
        load_library(str(folder))
        return Exported(folder, folders, None, True, (MANIFEST, *files))
    found, truncation = exported_pairs(library, setting, names, rank, given)
    if truncation is not None:
        record["relative_error"] = float(f"{truncation.total:.6g}")
    started = {str(adapter.init).lower() for adapter in _sources(library, setting)}
    header = {**record, **({"init": "loftq"} if "loftq" in started else {})}
    experts = [library.experts[name] for name in library.chosen_experts(setting)]
    record["versions"] = versions()
    with replaced_folder(folder) as aside:
        hashes = {
            name: write_adapter(
                aside / places[name],
                pairs,
                base_model=library.config.base_model,
                config=target_fields(experts if setting.merge else [expert], pairs),
                metadata={EXPORT: json.dumps(header, sort_keys=True)},
            )
            for (name, pairs), expert in zip(found.items(), experts, strict=False)
        }
        manifest["hashes"] = {f"{_EXPERTS}/{name}": sha256 for name, sha256 in hashes.items()}
        write_manifest(aside, manifest, _REMARK)
        facts = Facts(folder.name, record, license, places, found, hashes, rank)
        (aside / CARD).write_text(model_card(library, setting, facts), encoding="utf-8", newline="")
        _copy_vectors(library, setting, load_library(str(aside)), aside)
        for name, pairs in found.items():
            check_with_peft(aside / places[name], pairs)
        written = written_files(aside)
        manifest["provenance"] = {EXPORTED: record, FILES: written}
        write_manifest(aside, manifest, _REMARK)
    return Exported(folder, folders, truncation, False, (MANIFEST, *written))


def _names(library: Library, setting: Setting, places: Mapping[str, str]) -> list[str]:
    """Return the files of an export except the manifest, relative to its folder."""
    parts = [
        Path(place) / name for place in places.values() for name in (CONFIG_FILE, WEIGHTS_FILE)
    ]
    if library.vectors(setting) is not None:
        parts += [vectors_folder(Path(), setting.router) / name for name in VECTORS_FILES]
    return [CARD, *(path.as_posix() for path in parts)]


def _copy_vectors(library: Library, setting: Setting, exported: Library, folder: Path) -> None:
    """Write the vectors that the setting's router needs, as those of the new adapters."""
    vectors = library.vectors(setting)
    if vectors is None:
        return
    experts = {
        name: {**vectors.record["experts"][name], "adapter": adapter.digest}
        for name, adapter in exported.experts.items()
    }
    place = vectors_folder(folder, setting.router)
    write_vectors(place, vectors.tensors, {**vectors.record, "experts": experts})


def _record(library: Library, setting: Setting, rank: int | None) -> dict[str, Any]:
    # A local path must not appear in an export.
    local = Path(library.name).expanduser().exists()
    vectors = library.vectors(setting)
    return ({} if vectors is None else {"vectors": vectors.sha256}) | {
        "library": library.path.parent.resolve().name if local else library.name,
        "content_hash": library.content_of(setting),
        "setting": setting.identity(),
        "subtracted": list(library.languages(setting)),
        "rank": rank,
    }


def _ties(library: Library) -> list[dict[str, Any]] | None:
    """Return ``tied_prototypes`` of the new manifest; None if no layers share a prototype."""
    return [entry.model_dump() for entry in library.config.tied_prototypes] or None


def _sources(library: Library, setting: Setting) -> list[Adapter]:
    return [
        *(library.experts[name] for name in library.chosen_experts(setting)),
        *library.general_of(setting),
    ]


def _refuse_copies(library: Library, setting: Setting) -> None:
    for adapter in _sources(library, setting):
        if adapter.copies:
            raise LibraryError(
                f"{adapter.folder / WEIGHTS_FILE}: adapter {adapter.name!r} holds "
                f"{next(iter(adapter.copies.values()))}, a weight of the base, which an export "
                "would silently drop; save the adapter with save_embedding_layers=False."
            )
