"""The arguments of settings that are parameters of methods: their names and valid values."""

from __future__ import annotations

from gks_eval.errors import UsageError
from gks_eval.method.declaration import Method
from gks_eval.method.grammar import MERGE
from gks_eval.method.parameters import checked
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.stand_ins import STAND_INS

__all__ = ["all_methods", "check_of_another", "methods_of", "parameter_names"]


def methods_of(rule: str | None, router: str) -> list[Method]:
    """Return the methods that a rule's and a router's name stand for, and the stand-ins."""
    found: list[Method] = [STAND_INS] if rule is None else [RULES.get(rule), STAND_INS]
    if router.startswith(MERGE):
        found.append(MERGES.get(router.removeprefix(MERGE)))
    elif router in ROUTERS:
        found.append(ROUTERS.get(router))
    return found


def all_methods() -> list[Method]:
    """Return every method whose parameters are arguments of settings."""
    return [*RULES.usable(), STAND_INS, *ROUTERS.usable(), *MERGES.usable()]


def parameter_names() -> frozenset[str]:
    """Return the names of the parameters of all methods."""
    return frozenset(name for method in all_methods() for name in method.parameters.fields())


def check_of_another(name: str, value: object) -> None:
    """Check that some method accepts the value.

    Raises:
        UsageError: No method does; the message is the first method's.
    """
    faults = []
    for method in all_methods():
        if name in method.parameters.fields():
            try:
                checked(method.parameters, {name: value})
                return
            except UsageError as error:
                faults.append(error)
    raise faults[0]
