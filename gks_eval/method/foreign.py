"""Checks what methods of other packages return, once per layer; our own methods are not checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from gks_eval.errors import CompatibilityError, GksError, whole_reason
from gks_eval.method.declaration import Merge, Method, Parameters, Router, Rule
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES, ROUTERS, RULES

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["check_pairs", "check_tensor", "guarded", "is_own", "refuse", "residuals_of"]


def _kind(method: Method) -> tuple[str, bool]:
    """Return the kind of a method, and whether it is one of ours."""
    if isinstance(method, Router):
        return ROUTERS.kind, ROUTERS.is_own(method)
    if isinstance(method, Merge):
        return MERGES.kind, MERGES.is_own(method)
    assert isinstance(method, Rule)
    return RULES.kind, RULES.is_own(method)


def is_own(method: Method) -> bool:
    """Return whether a method is one of this package's."""
    return _kind(method)[1]


def refuse(method: Method, layer: str, fault: str) -> NoReturn:
    """Raise an error that names another package's method, its fault and the layer.

    Raises:
        CompatibilityError: Always.
    """
    kind, _ = _kind(method)
    where = f"layer {layer}" if layer else "a layer"
    raise CompatibilityError(
        f"{kind}={method.name} {fault}, at {where}; correct it, and test it with "
        f"gks_eval.testing.check_{kind}."
    )


@contextmanager
def guarded(method: Method, layer: str, held: Iterable[LoraPair] = ()) -> Iterator[None]:
    """Turn errors of another package's method into one sentence that names method and layer.

    Args:
        method: The method.
        layer: The layer's name.
        held: The adapters that it is given, which later settings use too.

    Raises:
        CompatibilityError: The method raised an error or SystemExit, or wrote to its adapters; or
            a method of ours was given adapters that are not finite.
    """
    factors = [] if is_own(method) else [one for pair in held for one in (pair.A, pair.B)]
    before = [_version(factor) for factor in factors]
    try:
        yield
    except (GksError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if is_own(method):
            if type(error).__name__.endswith("LinAlgError"):  # of numbers that are infinite
                where = f"layer {layer}" if layer else "a layer"
                raise CompatibilityError(
                    f"{method.name} cannot decompose the adapters at {where}, as their numbers are "
                    "too large; give the setting smaller values."
                ) from error
            raise
        try:
            refuse(method, layer, f"failed ({type(error).__name__}: {whole_reason(error)})")
        except CompatibilityError as refusal:
            raise refusal from error
    if before != [_version(factor) for factor in factors]:
        refuse(method, layer, "writes to its adapters, which other settings use too")


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # counts what was written in place


def residuals_of(
    rule: Rule,
    tasks: Sequence[LoraPair],
    general: Sequence[LoraPair],
    parameters: Parameters,
    layer: str,
) -> list[LoraPair]:
    """Return the residuals of all task adapters, checked if the rule is another package's.

    Raises:
        CompatibilityError: The rule fails or returns something else than residuals.
    """
    with guarded(rule, layer, [*tasks, *general]):
        found = rule.residuals(tasks, general, parameters)
    # A task adapter that the rule does not change is not the rule's.
    changed = [new for new, task in zip(found, tasks, strict=True) if new is not task]
    check_pairs(rule, changed, tasks[0].shape, layer, "residual")
    return found


def check_pairs(
    method: Method, pairs: Iterable[Any], shape: tuple[int, int], layer: str, what: str
) -> None:
    """Check pairs that another package's method returned for one layer.

    Args:
        method: The method.
        pairs: What it returned.
        shape: (D, K) of the layer.
        layer: The layer's name.
        what: What the pairs are, for the message.

    Raises:
        CompatibilityError: One is no `LoraPair` of the layer's shape, or not finite.
    """
    if is_own(method):
        return
    for pair in pairs:
        if not isinstance(pair, LoraPair):
            refuse(method, layer, f"returned {type(pair).__name__} as {what}, not a LoraPair")
        for factor in (pair.A, pair.B):
            check_tensor(method, factor, layer, f"a factor of a {what}")
        if pair.shape != shape:
            refuse(method, layer, f"returned a {what} of shape {pair.shape}, not {shape}")
        if not pair.rank:
            refuse(method, layer, f"returned a {what} of rank 0; return zeros of rank 1")
        if not isinstance(pair.scaling, (int, float)):
            refuse(method, layer, f"returned a {what} whose scaling is no number")
        if not (pair.A.isfinite().all() and pair.B.isfinite().all() and isfinite(pair.scaling)):
            refuse(method, layer, f"returned a {what} that is not finite")


def check_tensor(method: Method, found: Any, layer: str, what: str) -> None:
    """Check that a value of another package's method is a dense tensor of floats.

    Raises:
        CompatibilityError: It is something else.
    """
    if not isinstance(found, torch.Tensor):
        refuse(method, layer, f"returned {type(found).__name__} as {what}, not a tensor")
    if not found.is_floating_point():
        refuse(method, layer, f"returned {what} of type {found.dtype}, not of floats")
    if found.layout != torch.strided or found.is_meta:
        refuse(method, layer, f"returned {what} that is not a dense tensor with data")
