"""Finds and loads libraries of adapters.

A library is a folder (or hub repository) with a ``library.yaml``; see
`gks_eval.library.manifest.LibraryConfig` for its fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gks_eval.errors import CompatibilityError, HubError, LibraryError, did_you_mean
from gks_eval.library.hub import HubSource, fetch_adapter, fetch_library
from gks_eval.library.library import Library
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import Adapter, read_adapter
from gks_eval.library.tied import tied_groups
from gks_eval.util.paths import MANIFEST, adapters_dir, bundled
from gks_eval.util.yaml import load_typed

__all__ = ["MANIFEST", "Library", "bundled_libraries", "load_library", "read_manifest"]


def bundled_libraries() -> list[str]:
    """Return the names of the libraries that come with the package."""
    return bundled(MANIFEST)


def read_manifest(reference: str) -> tuple[Path, LibraryConfig]:
    """Find a library and read its library.yaml, without reading any adapter.

    Args:
        reference: A folder, a library.yaml, the name of a bundled library, or
            ``org/repo[/subfolder][@revision]`` on the hub; tried in that order.

    Raises:
        LibraryError: The library does not exist.
        ConfigError: Its library.yaml has faults; all are listed.
        HubError: The library is on the hub, which cannot be reached.
    """
    path, _ = _find(reference)
    return path, load_typed(path, LibraryConfig)


def load_library(reference: str) -> Library:
    """Load a library with all its adapters.

    Args:
        reference: A folder, a library.yaml, the name of a bundled library, or
            ``org/repo[/subfolder][@revision]`` on the hub; tried in that order.

    Raises:
        LibraryError: The library does not exist, or an adapter is missing, broken, unsafe or not
            supported.
        CompatibilityError: Two adapters expect different shapes of the same layer.
        ConfigError: library.yaml has faults.
        HubError: The hub is needed and cannot be reached.
    """
    path, from_hub = _find(reference)
    config = load_typed(path, LibraryConfig)
    if from_hub:
        _refuse_local_paths(config, reference)
    experts = _read_all("experts", config.experts, config, path)
    general = _read_all("general", config.general, config, path)
    shapes = _shapes([*experts.values(), *general.values()], path)
    digests: dict[str, Any] = {
        "base_model": config.base_model,
        "revision": config.revision,
        "experts": {name: adapter.digest for name, adapter in experts.items()},
        "general": {name: adapter.digest for name, adapter in general.items()},
    }
    routed = {
        name: shape
        for name, shape in shapes.items()
        if any(name in adapter.pairs for adapter in experts.values())
    }
    tied = tied_groups(config.tied_prototypes, routed, path)
    if tied:
        groups = {f"{group.op} {group.name}" for group in tied.values()}
        digests["tied_prototypes"] = sorted(groups)
    content = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return Library(reference, path, config, experts, general, content, shapes, tied)


def _local(text: str) -> Path | None:
    """Return `text` as a path, or None where no file system could hold it."""
    try:
        path = Path(text).expanduser()
        path.is_dir()  # checks the part before a `..`, which resolve() removes
        path.resolve().is_dir()
    except (OSError, RuntimeError, ValueError):
        # A name that is too long, an unknown user after ~, a null byte.
        return None
    return path


def _find(reference: str) -> tuple[Path, bool]:
    """Return the library's manifest, and whether it came from the hub."""
    if not reference.strip():
        raise LibraryError("the library's name is empty; give a bundled name, folder or hub id.")
    local = _local(reference)
    if local is None:
        raise LibraryError(f"library {reference!r:.80} is no usable path or name; check it.")
    if local.is_dir():
        manifest = local / MANIFEST
        if not manifest.is_file():
            raise LibraryError(
                f"{local} has no {MANIFEST}; write one that names the base model and the experts."
            )
        return manifest, False
    if local.is_file():
        return local, False
    if reference in bundled_libraries():
        return adapters_dir() / reference / MANIFEST, False
    if HubSource.looks_like(reference):
        return fetch_library(HubSource.parse(reference), MANIFEST), True
    raise LibraryError(
        f"library {reference!r} is neither a folder, nor bundled, nor a hub id; "
        f"{did_you_mean(reference, bundled_libraries())}."
    )


def _refuse_local_paths(config: LibraryConfig, reference: str) -> None:
    # A local file may name absolute paths; a downloaded one must not read other local files.
    for kind, sources in (("experts", config.experts), ("general", config.general)):
        for name, source in sources.items():
            path = _local(source)
            if path is None or path.is_absolute():
                raise LibraryError(
                    f"library {reference} on the hub: {kind}/{name} names a path on this machine "
                    f"({source!r:.80}); download the library and correct its {MANIFEST}."
                )


def _read_all(
    kind: str, sources: Mapping[str, str], config: LibraryConfig, manifest: Path
) -> dict[str, Adapter]:
    adapters = {}
    for name, source in sources.items():
        folder = _adapter_folder(f"{kind}/{name}", source, config, manifest)
        adapter = read_adapter(folder, name)
        expected = config.hashes.get(f"{kind}/{name}")
        if expected is not None and expected != adapter.weights_sha256:
            raise LibraryError(
                f"{folder}: the weights of adapter {name!r} have another SHA-256 than the one in "
                f"{manifest}; copy them again, or correct the file if the change was intended."
            )
        adapters[name] = adapter
    return adapters


def _adapter_folder(label: str, source: str, config: LibraryConfig, manifest: Path) -> Path:
    root = manifest.parent.resolve()
    path = _local(source)
    inside = None if path is None else _local(str(root / path))  # where parts of it may exist
    if path is None or inside is None:
        raise LibraryError(f"{manifest}: {label} is no usable path ({source!r:.80}); correct it.")
    if path.is_absolute() and path.is_dir():
        return path
    folder = inside.resolve()
    if not path.is_absolute() and not folder.is_relative_to(root):
        raise LibraryError(
            f"{manifest}: {label} points outside its folder ({source}); "
            "write an absolute path if that is intended."
        )
    if folder.is_dir():
        return folder
    if config.made_by:
        commands = " && ".join(config.made_by)
        raise LibraryError(
            f"{manifest}: {label} does not exist yet ({folder}); make it with: {commands}"
        )
    # A misspelt `experts/name` has the form of a hub id; fetching it would load weights from
    # the owner of that name on the hub.
    is_local = source.startswith(".") or (root / path.parts[0]).exists()
    if not is_local and HubSource.looks_like(source):
        try:
            return fetch_adapter(HubSource.parse(source))
        except HubError as error:
            # This is more often a misspelt folder than a hub id that cannot be fetched.
            raise HubError(f"{manifest}: {label} is no folder ({folder}), and {error}") from None
    raise LibraryError(f"{manifest}: {label} names {source}, which does not exist; check the path.")


def _shapes(adapters: Iterable[Adapter], manifest: Path) -> dict[str, tuple[int, int]]:
    """Return (D, K) of every linear layer that any of the adapters updates, sorted by name."""
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for module, pair in adapter.pairs.items():
            first = owners.setdefault(module, adapter)
            if pair.shape != (expected := first.pairs[module].shape):
                raise CompatibilityError(
                    f"{manifest}: at {module} adapter {first.name!r} is for a layer of shape "
                    f"{expected} and {adapter.name!r} for {pair.shape}; "
                    "they belong to different base models."
                )
    return {module: owners[module].pairs[module].shape for module in sorted(owners)}
