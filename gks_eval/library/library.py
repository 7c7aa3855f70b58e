"""A library of adapters: task experts and general-knowledge adapters for one base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gks_eval.errors import CompatibilityError, UsageError, did_you_mean
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import Adapter
from gks_eval.library.prepared import PreparedVectors, prepared_vectors
from gks_eval.library.stand_in_layers import stand_ins_at
from gks_eval.library.tied import TiedLayers, in_words
from gks_eval.method.declaration import TARGET, VECTORS
from gks_eval.method.grammar import EXPERTS
from gks_eval.method.lora import EXACT, LoraPair, no_update, one_of_each, same_factors
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import Setting
from gks_eval.method.tied import Tied
from gks_eval.util.digest import digest

__all__ = ["Library"]


@dataclass(frozen=True)
class Library:
    """A library as loaded; its adapters are never written to.

    Attributes:
        name: The name or path that the user gave.
        path: Its library.yaml.
        config: The typed content of that file.
        experts: Task adapters by name, in the order of the file.
        general: General adapters by language, in the order of the file.
        content_hash: SHA-256 over the base and all adapters, hex; it does not depend on the
            folder's location.
        shapes: (D, K) of every linear layer that any adapter updates, sorted by name.
        tied: The groups of layers that share one prototype per expert, by layer.
    """

    name: str
    path: Path
    config: LibraryConfig
    experts: Mapping[str, Adapter]
    general: Mapping[str, Adapter]
    content_hash: str
    shapes: Mapping[str, tuple[int, int]]
    tied: Mapping[str, TiedLayers] = field(default_factory=dict)

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
        """Return the names of what `setting` averages and subtracts, or ``experts`` for all."""
        return tuple(self.general) if setting.subtract == ("avg",) else setting.subtract

    def general_of(self, setting: Setting) -> list[Adapter]:
        """Return the adapters that the setting's rule gets as `general`.

        These are the ones that it averages and subtracts, and after them the target language of a
        rule that needs one.
        """
        if setting.subtract == (EXPERTS,):
            chosen = list(self.experts.values())
        else:
            chosen = [self.general[name] for name in self.languages(setting)]
        return chosen if setting.target is None else [*chosen, self.general[setting.target]]

    def chosen_experts(self, setting: Setting) -> tuple[str, ...]:
        """Return the experts that take part: all, or the one that runs alone."""
        if not setting.uses_library:
            return ()
        return tuple(self.experts) if setting.expert is None else (setting.expert,)

    def mixed_adapters(self, setting: Setting) -> tuple[str, ...]:
        """Return the names of what the router mixes: the experts, or the merge made of them."""
        return self.chosen_experts(setting) if setting.merge is None else (setting.router,)

    def layer(self, module: str, setting: Setting) -> tuple[list[LoraPair], list[LoraPair]]:
        """Return what is mixed and what is subtracted from it at one linear layer.

        These are the experts' and the general adapters' pairs, or the stand-ins that the setting
        puts in their place, see `gks_eval.library.stand_in_layers`.
        """
        if setting.stand_ins.used:
            return stand_ins_at(self, module, setting)
        return (
            [self.pair(self.experts[name], module) for name in self.chosen_experts(setting)],
            [self.pair(adapter, module) for adapter in self.general_of(setting)],
        )

    def tied_layers(self, module: str, setting: Setting) -> Tied | None:
        """Return the layers that share a prototype with this one; None if it has its own."""
        group = self.tied.get(module)
        if group is None:
            return None
        layers = [(name, *self.layer(name, setting)) for name in group.layers]
        return Tied(group.name, group.op, layers)

    def pair(self, adapter: Adapter, module: str) -> LoraPair:
        """Return an adapter's update of one linear layer; zero if it does not update the layer."""
        return adapter.pairs.get(module) or no_update(self.shapes[module])

    def vectors(self, setting: Setting) -> PreparedVectors | None:
        """Return the prepared vectors of the setting's router; None where it needs none.

        Raises:
            LibraryError: They are missing, broken, or were made for other adapters.
        """
        if not setting.uses_library or setting.router_method()[0].needs != VECTORS:
            return None
        return prepared_vectors(self, setting.router)

    def content_of(self, setting: Setting) -> str | None:
        """Return a hash of everything in the library that the setting's numbers depend on."""
        if not setting.uses_library:
            return None
        more: dict[str, Any] = {}
        if (vectors := self.vectors(setting)) is not None:
            more["vectors"] = vectors.sha256
        if "seed" in setting.parameters or setting.stand_ins.general == "other":
            more["order"] = list(self.experts)  # what is drawn depends on it
        return digest({"library": self.content_hash, **more}) if more else self.content_hash

    def check(self, setting: Setting) -> Setting:
        """Check that the setting can be run with these adapters.

        Returns:
            The setting, with a `top_k` of at most the number of experts where none was given.

        Raises:
            UsageError: Unknown language or expert, or top_k above the number of experts.
            CompatibilityError: Ranks or scalings differ where the formula needs them equal, or an
                adapter lacks a layer whose factors it needs.
            LibraryError: The router's prepared vectors are missing, broken or for other adapters.
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
        if setting.subtract == (EXPERTS,):
            if len(self.experts) < 2:
                raise UsageError(
                    f"subtract=experts: library {self.name} has one expert and needs two."
                )
        else:
            for language in self.languages(setting):
                self._check_language("subtract", language)
        self._check_target(setting)
        self._check_stand_ins(setting)
        for name in self.chosen_experts(setting):
            if setting.subtract and (done := self.experts[name].subtracted):
                raise UsageError(
                    f"library {self.name}: {', '.join(done)} was subtracted from expert {name!r} "
                    "when it was exported; use subtract=none, which routes the residuals."
                )
        try:
            setting = setting.fitted(len(self.experts))
        except UsageError as error:
            raise UsageError(f"library {self.name}: {error}") from None
        self._check_factors(setting)
        self.vectors(setting)
        return setting

    def _check_language(self, argument: str, language: str) -> None:
        if language not in self.general:
            raise UsageError(
                f"{argument}={language}: library {self.name} has no general adapter of that "
                f"name; known: {', '.join(self.general) or 'none'}."
            )

    def _check_target(self, setting: Setting) -> None:
        if setting.rule_method()[0].needs != TARGET:
            return
        if setting.target is None or not setting.subtract:
            raise UsageError(
                f"rule={setting.rule} needs a language to subtract and one to add; write "
                f"gks:en;rule={setting.rule};target=de."
            )
        self._check_language("target", setting.target)
        if setting.stand_ins.used:
            raise UsageError(
                f"rule={setting.rule} has no controls; leave general= and experts= out."
            )

    def _check_stand_ins(self, setting: Setting) -> None:
        stand_ins = setting.stand_ins
        if stand_ins.general == "other" and len(self.experts) < 2:
            raise UsageError(f"general=other: library {self.name} has one expert and needs two.")
        if stand_ins.expert is not None and stand_ins.expert not in self.experts:
            raise UsageError(
                f"general={stand_ins.general}: library {self.name} has no such expert; "
                f"{did_you_mean(stand_ins.expert, list(self.experts))}."
            )

    def _check_factors(self, setting: Setting) -> None:
        experts = [self.experts[name] for name in self.chosen_experts(setting)]
        general = self.general_of(setting)
        if setting.stand_ins.expert is not None:
            general = [self.experts[setting.stand_ins.expert]]
        elif setting.stand_ins.general == "other":
            general = list(self.experts.values())
        if setting.merge is not None:
            merge, parameters = setting.merge_method()
            if merge.needs_equal_factors(parameters):
                instead = merge.instead or "merge:mean"
                self._check_equal(experts, self.modules, setting.router, instead)
        elif setting.combine == "factors":
            self._check_equal(experts, self.modules, "combine=factors")
        if general and setting.rule_method()[0].equal_factors:
            # Nothing is subtracted from an expert at layers that it does not update.
            for expert in one_of_each(experts):
                self._check_equal([expert, *general], expert.pairs, f"rule={setting.rule}")

    def _check_equal(
        self, adapters: Sequence[Adapter], modules: Iterable[str], why: str, instead: str = EXACT
    ) -> None:
        first, *others = adapters
        others = one_of_each(others)
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
            f"{', '.join(scalings)}; targets {', '.join(targets)} ({layers})"
            f"{in_words(self.config.tied_prototypes)}."
        )

    def describe(self, setting: Setting | None = None) -> dict[str, Any]:
        """Return what a setting's results record about the library, as plain JSON values."""
        vectors = None if setting is None else self.vectors(setting)
        hashes = {"vectors": vectors.sha256} if vectors is not None else {}
        ties = [one.model_dump() for one in self.config.tied_prototypes]
        return (
            hashes
            | ({"tied_prototypes": ties} if ties else {})
            | {
                "name": self.name,
                "content_hash": self.content_hash,
                "base_model": self.config.base_model,
                "revision": self.config.revision,
                "experts": {name: adapter.digest for name, adapter in self.experts.items()},
                "general": {name: adapter.digest for name, adapter in self.general.items()},
            }
        )
