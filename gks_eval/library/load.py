"""A library of adapters: task experts and general-knowledge adapters for one base model.

A library is a folder (or hub repository) with a ``library.yaml``; see
`gks_eval.library.manifest.LibraryConfig` for its fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gks_eval.errors import CompatibilityError, HubError, LibraryError, UsageError, did_you_mean
from gks_eval.library.hub import HubSource, fetch_adapter, fetch_library
from gks_eval.library.manifest import MANIFEST, LibraryConfig
from gks_eval.library.peft_adapter import Adapter, read_adapter
from gks_eval.method.lora import EXACT, LoraPair, no_update, same_factors
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import Setting
from gks_eval.util.paths import adapters_dir, bundled
from gks_eval.util.yaml import load_typed

__all__ = ["MANIFEST", "Library", "bundled_libraries", "load_library", "read_manifest"]


@dataclass(frozen=True)
class Library:
    """A library as loaded; its adapters are never written to.

    Attributes:
        name: What the user called it.
        path: Its library.yaml.
        config: The typed content of that file.
        experts: Task adapters by name, in the order of the file.
        general: General adapters by language, likewise.
        content_hash: SHA-256 over the base and all adapters, hex; equal content, equal hash,
            wherever the folder lies.
        shapes: (D, K) of every linear layer that any adapter updates, sorted by name.
    """

    name: str
    path: Path
    config: LibraryConfig
    experts: Mapping[str, Adapter]
    general: Mapping[str, Adapter]
    content_hash: str
    shapes: Mapping[str, tuple[int, int]]

    def __repr__(self) -> str:
        experts, general = ", ".join(self.experts), ", ".join(self.general) or "none"
        return f"Library({self.name!r}, experts: {experts}; general: {general})"

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Return all adapters, the experts first."""
        return *self.experts.values(), *self.general.values()

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the names of the linear layers that any adapter updates, sorted."""
        return tuple(self.shapes)

    def languages(self, setting: Setting) -> tuple[str, ...]:
        """Return the general adapters that `setting` averages and subtracts."""
        return tuple(self.general) if setting.subtract == ("avg",) else setting.subtract

    def chosen_experts(self, setting: Setting) -> tuple[str, ...]:
        """Return the experts that take part: all, or the one that runs alone."""
        if not setting.uses_library:
            return ()
        return tuple(self.experts) if setting.expert is None else (setting.expert,)

    def mixed_adapters(self, setting: Setting) -> tuple[str, ...]:
        """Return the names of what the router mixes: the experts, or the merge made of them."""
        return self.chosen_experts(setting) if setting.merge is None else (setting.router,)

    def layer(self, module: str, setting: Setting) -> tuple[list[LoraPair], list[LoraPair]]:
        """Return the experts' and the general adapters' pairs at one linear layer."""
        return (
            [self.pair(self.experts[name], module) for name in self.chosen_experts(setting)],
            [self.pair(self.general[name], module) for name in self.languages(setting)],
        )

    def pair(self, adapter: Adapter, module: str) -> LoraPair:
        """Return an adapter's update of one linear layer; zero where it leaves the layer alone."""
        return adapter.pairs.get(module) or no_update(self.shapes[module])

    def check(self, setting: Setting) -> Setting:
        """Check that the setting can be run with these adapters.

        Returns:
            The setting, with a `top_k` of at most the number of experts where none was given.

        Raises:
            UsageError: Unknown language or expert, or top_k above the number of experts.
            CompatibilityError: Ranks or scalings differ where the formula needs them equal, or an
                adapter lacks a layer whose factors it needs.
        """
        if not setting.uses_library:
            return setting
        if setting.expert is not None and setting.expert not in self.experts:
            known = [*ROUTERS.names(), "none", *self.experts]
            raise UsageError(
                f"router={setting.router} is neither a router nor an expert of library "
                f"{self.name}; {did_you_mean(setting.expert, known)}."
            )
        if setting.subtract == ("avg",) and not self.general:
            raise UsageError(
                f"subtract=avg: library {self.name} has no general adapters; use subtract=none."
            )
        known_languages = ", ".join(self.general) or "none"
        for language in self.languages(setting):
            if language not in self.general:
                raise UsageError(
                    f"subtract={language}: library {self.name} has no general adapter of that "
                    f"name; known: {known_languages}."
                )
        try:
            setting = setting.fitted(len(self.experts))
        except UsageError as error:
            raise UsageError(f"library {self.name}: {error}") from None
        self._check_factors(setting)
        return setting

    def _check_factors(self, setting: Setting) -> None:
        experts = [self.experts[name] for name in self.chosen_experts(setting)]
        general = [self.general[name] for name in self.languages(setting)]
        if setting.merge is not None:
            merge, parameters = setting.merge_method()
            if merge.needs_equal_factors(parameters):
                instead = merge.instead or "merge:mean"
                self._check_equal(experts, self.modules, setting.router, instead)
        elif setting.combine == "factors":
            self._check_equal(experts, self.modules, "combine=factors")
        if general and setting.rule_method()[0].equal_factors:
            # Nothing is subtracted from an expert at the layers that it leaves alone.
            for expert in experts:
                self._check_equal([expert, *general], expert.pairs, f"rule={setting.rule}")

    def _check_equal(
        self, adapters: Sequence[Adapter], modules: Iterable[str], why: str, instead: str = EXACT
    ) -> None:
        first, *others = adapters
        for module in modules:
            for other in others:
                try:
                    same_factors([self.pair(a, module) for a in (first, other)], why, instead)
                except CompatibilityError as error:
                    lacking = [a.name for a in (first, other) if module not in a.pairs]
                    which = f", which {lacking[0]!r} does not update" if lacking else ""
                    raise CompatibilityError(
                        f"library {self.name}, adapters {first.name!r} and {other.name!r} at "
                        f"{module}{which}: {error}"
                    ) from None

    def summary(self) -> str:
        """Return base, adapters, ranks, scalings and targets in one line."""
        pairs = [pair for adapter in self.adapters for pair in adapter.pairs.values()]
        targets = sorted({module.rpartition(".")[2] for module in self.modules})
        ranks = sorted({pair.rank for pair in pairs})
        scalings = sorted({f"{pair.scaling:.4g}" for pair in pairs})
        layers = f"{len(self.modules)} layers"
        if fewer := [a for a in self.adapters if len(a.pairs) < len(self.modules)]:
            layers += ", fewer for " + ", ".join(f"{a.name} {len(a.pairs)}" for a in fewer)
        return (
            f"{self.name}: base {self.config.base_model}; {len(self.experts)} experts, general "
            f"{', '.join(self.general) or 'none'}; rank {', '.join(map(str, ranks))}, scaling "
            f"{', '.join(scalings)}; targets {', '.join(targets)} ({layers})."
        )

    def describe(self) -> dict[str, Any]:
        """Return what results record about the library, as plain JSON values."""
        return {
            "name": self.name,
            "content_hash": self.content_hash,
            "base_model": self.config.base_model,
            "revision": self.config.revision,
            "experts": {name: adapter.digest for name, adapter in self.experts.items()},
            "general": {name: adapter.digest for name, adapter in self.general.items()},
        }


def bundled_libraries() -> list[str]:
    """Return the names of the libraries that come with the package."""
    return bundled(MANIFEST)


def read_manifest(reference: str) -> tuple[Path, LibraryConfig]:
    """Find a library and read its library.yaml, without reading any adapter.

    Args:
        reference: A folder, a library.yaml, the name of a bundled library, or
            ``org/repo[/subfolder][@revision]`` on the hub; tried in that order.

    Raises:
        LibraryError: There is no such library.
        ConfigError: Its library.yaml has faults; all are listed.
        HubError: It would have to come from the hub, which cannot be reached.
    """
    path, _ = _find(reference)
    return path, load_typed(path, LibraryConfig)


def load_library(reference: str) -> Library:
    """Load a library with all its adapters.

    Args:
        reference: As for `read_manifest`.

    Raises:
        LibraryError: No such library, or an adapter is missing, broken, unsafe or unsupported.
        CompatibilityError: Two adapters are for a layer of different shape.
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
    digests = {
        "base_model": config.base_model,
        "revision": config.revision,
        "experts": {name: adapter.digest for name, adapter in experts.items()},
        "general": {name: adapter.digest for name, adapter in general.items()},
    }
    content = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return Library(reference, path, config, experts, general, content, shapes)


def _local(text: str) -> Path | None:
    """Return `text` as a path, or None where no file system could hold it."""
    try:
        path = Path(text).expanduser()
        path.is_dir()  # what stands before a `..` counts here, and is gone once resolved
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
    # In one's own file an absolute path is meant; in a stranger's it reaches into this machine.
    for kind, sources in (("experts", config.experts), ("general", config.general)):
        for name, source in sources.items():
            path = _local(source)
            if path is None or path.is_absolute():
                raise LibraryError(
                    f"library {reference} on the hub: {kind}/{name} names a path of this machine "
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
                f"{folder}: the weights of adapter {name!r} have another SHA-256 than {manifest} "
                "says; copy them anew, or correct the file if the change was meant."
            )
        adapters[name] = adapter
    return adapters


def _adapter_folder(label: str, source: str, config: LibraryConfig, manifest: Path) -> Path:
    root = manifest.parent.resolve()
    path = _local(source)
    if path is None:
        raise LibraryError(f"{manifest}: {label} is no usable path ({source!r:.80}); correct it.")
    if path.is_absolute() and path.is_dir():
        return path
    folder = (root / path).resolve()
    if not path.is_absolute() and not folder.is_relative_to(root):
        raise LibraryError(
            f"{manifest}: {label} points outside its folder ({source}); "
            "write an absolute path if that is meant."
        )
    if folder.is_dir():
        return folder
    if config.made_by:
        commands = " && ".join(config.made_by)
        raise LibraryError(
            f"{manifest}: {label} is not there yet ({folder}); make it with: {commands}"
        )
    # A misspelt `experts/name` has the form of a hub id; fetching it would take weights from
    # whoever owns that name there.
    is_local = source.startswith(".") or (root / path.parts[0]).exists()
    if not is_local and HubSource.looks_like(source):
        try:
            return fetch_adapter(HubSource.parse(source))
        except HubError as error:
            # More often a misspelt folder than a hub id that cannot be fetched.
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
