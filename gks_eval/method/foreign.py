"""Checks what methods of other packages return, once per layer; our own methods are not checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from gks_eval.errors import CompatibilityError, GksError, whole_reason
from gks_eval.method.declaration import (
    ContextRouter,
    Merge,
    Method,
    Parameters,
    Prepared,
    Router,
    Rule,
)
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES, ROUTERS, RULES

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["check_coefficients", "check_pairs", "check_prepared", "guarded", "residuals_of"]

SUM_TOLERANCE = 1e-2
"""Rows of coefficients in 16 bits sum to 1 up to about this."""


def _kind(method: Method) -> tuple[str, bool]:
    """Return the kind of a method, and whether it is one of ours."""
    if isinstance(method, Router):
        return ROUTERS.kind, ROUTERS.is_own(method)
    if isinstance(method, Merge):
        return MERGES.kind, MERGES.is_own(method)
    assert isinstance(method, Rule)
    return RULES.kind, RULES.is_own(method)


def _is_own(method: Method) -> bool:
    return _kind(method)[1]


def _refuse(method: Method, layer: str, fault: str) -> NoReturn:
    kind, _ = _kind(method)
    where = f"layer {layer}" if layer else "a layer"
    raise CompatibilityError(
        f"{kind}={method.name} {fault}, at {where}; correct it, and test it with "
        f"gks_eval.testing.check_{kind}."
    )


@contextmanager
def guarded(method: Method, layer: str) -> Iterator[None]:
    """Turn errors of another package's method into one sentence that names method and layer.

    Raises:
        CompatibilityError: The method raised an error, or SystemExit.
    """
    try:
        yield
    except (GksError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if _is_own(method):
            raise
        try:
            _refuse(method, layer, f"failed ({type(error).__name__}: {whole_reason(error)})")
        except CompatibilityError as refusal:
            raise refusal from error


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
    with guarded(rule, layer):
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
    if _is_own(method):
        return
    for pair in pairs:
        if not isinstance(pair, LoraPair):
            _refuse(method, layer, f"returned {type(pair).__name__} as {what}, not a LoraPair")
        if pair.shape != shape:
            _refuse(method, layer, f"returned a {what} of shape {pair.shape}, not {shape}")
        if not (pair.A.isfinite().all() and pair.B.isfinite().all() and isfinite(pair.scaling)):
            _refuse(method, layer, f"returned a {what} that is not finite")


def check_prepared(
    router: Router, ready: Any, width: int, layer: str, *, by_context: bool = False
) -> None:
    """Check what another package's router prepared for one layer with `width` inputs.

    Raises:
        CompatibilityError: It is no `Prepared` with directions of the layer's width, or cannot make
            one choice per context although its parameters say so.
    """
    if _is_own(router):
        return
    if not isinstance(ready, Prepared):
        _refuse(router, layer, f"returned {type(ready).__name__}, not a Prepared")
    choose: Any = ready.choose
    directions: Any = ready.directions
    if isinstance(choose, type) or not is_dataclass(choose):
        _refuse(router, layer, "prepared an object that is no instance of a dataclass")
    if by_context and not isinstance(choose, ContextRouter):
        _refuse(router, layer, "prepared an object without the methods scores and chosen")
    if directions is None:
        return
    if not isinstance(directions, torch.Tensor):
        _refuse(router, layer, f"returned {type(directions).__name__} as directions, not a tensor")
    if directions.ndim != 2 or directions.shape[1] != width:
        shape = tuple(directions.shape)
        _refuse(router, layer, f"returned directions of shape {shape}, not (N, {width})")
    if not directions.isfinite().all():
        _refuse(router, layer, "returned directions that are not finite")


def check_coefficients(router: Router, found: Any, tokens: int, experts: int, layer: str) -> None:
    """Check the coefficients of another package's router for some tokens at one layer.

    Raises:
        CompatibilityError: They are not (T, E) or (1, E), not finite, or do not sum to 1 although
            the declaration says so.
    """
    if not isinstance(found, torch.Tensor):
        _refuse(router, layer, f"returned {type(found).__name__} as coefficients, not a tensor")
    if tuple(found.shape) not in ((tokens, experts), (1, experts)):
        _refuse(
            router,
            layer,
            f"returned coefficients of shape {tuple(found.shape)} for {tokens} tokens and "
            f"{experts} experts, not (T, E) or (1, E)",
        )
    if not found.isfinite().all():
        _refuse(router, layer, "returned coefficients that are not finite")
    if router.sums_to_one and (found.float().sum(1) - 1).abs().max() > SUM_TOLERANCE:
        _refuse(
            router,
            layer,
            "returned coefficients whose rows do not sum to 1, and its declaration says that "
            "every row sums to 1 (sums_to_one)",
        )
