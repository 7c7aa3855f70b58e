"""The rules, routers and merges by name: ours, and those of other packages.

The tables here hold the place of each declaration, so that listing names imports nothing. Other
packages add methods through the entry-point groups ``gks_eval.rules``, ``gks_eval.routers`` and
``gks_eval.merges``, whose values have the same form; a notebook calls `Registry.add`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Generic, TypeVar

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.method.declaration import Merge, Method, Router, Rule
from gks_eval.method.declared import fault_of

__all__ = ["MERGES", "ROUTERS", "RULES", "Registry"]

logger = logging.getLogger(__name__)

MethodT = TypeVar("MethodT", bound=Method)


class Registry(Generic[MethodT]):
    """The methods of one kind, by name.

    Attributes:
        kind: ``rule``, ``router`` or ``merge``.
        group: The entry-point group of other packages.
    """

    def __init__(self, kind: type[MethodT], own: dict[str, str]) -> None:
        self.kind = kind.__name__.lower()
        self.group = f"gks_eval.{self.kind}s"
        self._type = kind
        self._own = own
        self._added: dict[str, MethodT] = {}
        self._loaded: dict[str, MethodT] = {}
        self._broken: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Registry({self.kind}s: {', '.join(self.names())})"

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entry.name in self._own or entry.name in found:
                logger.warning(
                    "The %s %s of %s is left out, as that name is taken.",
                    self.kind,
                    entry.name,
                    _by(entry),
                )
            else:
                found[entry.name] = entry
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._added or name in self._foreign

    def is_own(self, method: MethodT) -> bool:
        """Return whether the method is one of this package's."""
        return method.name in self._own

    def names(self) -> list[str]:
        """Return all names, ours first; imports no method."""
        return [*self._own, *self._added, *self._foreign]

    def get(self, name: str) -> MethodT:
        """Return the method called `name`.

        Raises:
            UsageError: The method is unknown, or its package is broken.
        """
        if name in self._added:
            return self._added[name]
        if name in self._own:
            return self._load(EntryPoint(name, self._own[name], self.group))
        if name not in self._foreign:
            raise UsageError(f"{self.kind}={name} is unknown; {did_you_mean(name, self.names())}.")
        entry = self._foreign[name]
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._broken:
            try:
                found = self._load(entry)
                if fault := fault_of(found, self._type):
                    raise TypeError(fault)
                self._loaded[name] = found
                return found
            except (Exception, SystemExit) as error:
                self._broken[name] = f"{type(error).__name__}: {error}"
                logger.warning("The %s %s of %s is broken: %s", self.kind, name, _by(entry), error)
        raise UsageError(
            f"{self.kind}={name} comes from {_by(entry)} and cannot be loaded "
            f"({self._broken[name]}); update or uninstall that package."
        )

    def _load(self, entry: EntryPoint) -> MethodT:
        found = getattr(import_module(entry.module), entry.attr)
        if not isinstance(found, self._type) or found.name != entry.name:
            raise TypeError(f"{entry.value} is no {self.kind} called {entry.name}")
        return found

    def usable(self) -> list[MethodT]:
        """Return all methods that can be loaded."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except UsageError:  # a broken package: `get` has warned
                continue
        return found

    def add(self, method: MethodT) -> MethodT:
        """Add a method for this process, replacing one added before; returns it.

        Raises:
            UsageError: The declaration has a fault, or its name is taken by a method of ours or of
                an installed package.
        """
        if fault := fault_of(method, self._type):
            raise UsageError(
                f"a {self.kind} cannot be added, as {fault}; correct its declaration, and test it "
                f"with gks_eval.testing.check_{self.kind}."
            )
        if method.name in self._own or method.name in self._foreign:
            raise UsageError(f"{self.kind} {method.name} exists; choose another name.")
        self._added[method.name] = method
        return method

    @contextmanager
    def lent(self, method: MethodT) -> Iterator[None]:
        """Register the method inside a `with` block, unless it is registered already."""
        if method.name in self and self.get(method.name) is method:
            yield
            return
        self.add(method)
        try:
            yield
        finally:
            del self._added[method.name]


def _by(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


_HOME: Final = "gks_eval.method"

RULES: Final = Registry(
    Rule,
    {
        "factors": f"{_HOME}.rules.factors:factors",
        "delta": f"{_HOME}.rules.delta:delta",
        "orthogonal": f"{_HOME}.rules.orthogonal:orthogonal",
        "pico": f"{_HOME}.rules.pico:pico",
        "cross_lingual": f"{_HOME}.rules.cross_lingual:cross_lingual",
    },
)
"""The rules by name: ``get(name)``, ``names()``, ``add(method)`` and ``name in RULES``."""
ROUTERS: Final = Registry(
    Router,
    {
        "arrow": f"{_HOME}.routers.arrow:arrow",
        "uniform": f"{_HOME}.routers.uniform:uniform",
        "random": f"{_HOME}.routers.random:random",
        "spectr": f"{_HOME}.routers.spectr:spectr",
        "norm": f"{_HOME}.routers.norm:norm",
        "shuffled": f"{_HOME}.routers.shuffled:shuffled",
        "lag": f"{_HOME}.routers.lag:lag",
        "mean_activation": f"{_HOME}.routers.mean_activation:mean_activation",
        "phatgoose": f"{_HOME}.routers.phatgoose:phatgoose",
    },
)
"""The routers by name: ``get(name)``, ``names()``, ``add(method)`` and ``name in ROUTERS``."""
MERGES: Final = Registry(
    Merge,
    {
        "mean": f"{_HOME}.merges.mean:mean",
        "task_arithmetic": f"{_HOME}.merges.task_arithmetic:task_arithmetic",
        "svd": f"{_HOME}.merges.svd:svd",
        "tsv": f"{_HOME}.merges.tsv:tsv",
        "knots": f"{_HOME}.merges.knots:knots",
        "core_space": f"{_HOME}.merges.core_space:core_space",
        "ties": f"{_HOME}.merges.ties:ties",
        "dare_linear": f"{_HOME}.merges.dare_linear:dare_linear",
        "dare_ties": f"{_HOME}.merges.dare_ties:dare_ties",
        "magnitude_prune": f"{_HOME}.merges.magnitude_prune:magnitude_prune",
    },
)
"""The merges by name: ``get(name)``, ``names()``, ``add(method)`` and ``name in MERGES``."""
