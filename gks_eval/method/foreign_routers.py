"""Checks what routers of other packages prepare and choose, once per layer."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, Final

import torch

from gks_eval.method.choice import SparseRouter
from gks_eval.method.declaration import ContextRouter, Prepared, Router, Tokens
from gks_eval.method.foreign import check_tensor, guarded, is_own, refuse

__all__ = ["check_choose", "check_prepared"]

SUM_TOLERANCE: Final = 1e-2
"""Rows of coefficients in 16 bits sum to 1 up to about this."""


def check_prepared(
    router: Router, ready: Any, width: int, layer: str, *, by_context: bool = False
) -> None:
    """Check what another package's router prepared for one layer with `width` inputs.

    Raises:
        CompatibilityError: It is no `Prepared` with directions of the layer's width, or cannot make
            one choice per context although its parameters say so.
    """
    if is_own(router):
        return
    if not isinstance(ready, Prepared):
        refuse(router, layer, f"returned {type(ready).__name__}, not a Prepared")
    choose: Any = ready.choose
    directions: Any = ready.directions
    if isinstance(choose, type) or not is_dataclass(choose):
        refuse(router, layer, "prepared an object that is no instance of a dataclass")
    if by_context and not isinstance(choose, ContextRouter):
        refuse(router, layer, "prepared an object without the methods scores and chosen")
    if directions is None:
        return
    check_tensor(router, directions, layer, "directions")
    if directions.ndim != 2 or directions.shape[1] != width:
        shape = tuple(directions.shape)
        refuse(router, layer, f"returned directions of shape {shape}, not (N, {width})")
    if not directions.isfinite().all():
        refuse(router, layer, "returned directions that are not finite")


def check_choose(
    router: Router, choose: Any, tokens: Tokens, experts: int, layer: str, *, by_context: bool
) -> None:
    """Check what another package's router chooses for some tokens at one layer, in every way.

    Raises:
        CompatibilityError: It fails or writes to its tokens; its coefficients, scores or choice
            have the wrong form; or its choice is another one than its coefficients.
    """
    count, held = len(tokens.x), (tokens.x, tokens.scores, tokens.inner)
    before = [tensor.clone() for tensor in held]
    with torch.no_grad(), guarded(router, layer):
        found = choose.coefficients(tokens)
    check_coefficients(router, found, count, experts, layer)
    if by_context:
        with torch.no_grad(), guarded(router, layer):
            scores = choose.scores(tokens)
        check_tensor(router, scores, layer, "scores")
        if tuple(scores.shape) != (count, experts) or scores.isnan().any():
            refuse(router, layer, "returned scores that are not (T, E), or NaN")
        with torch.no_grad(), guarded(router, layer):
            found = choose.chosen(scores)
        check_coefficients(router, found, count, experts, layer)
    elif isinstance(choose, SparseRouter) and experts > 1:
        _check_sparse(router, choose, tokens, found, layer)
    if not all(map(torch.equal, held, before)):
        refuse(router, layer, "writes to its tokens")


def _check_sparse(
    router: Router, choose: SparseRouter, tokens: Tokens, c_TE: torch.Tensor, layer: str
) -> None:
    top_k, experts = choose.top_k, c_TE.shape[1]
    if type(top_k) is not int or type(choose.reads_inner) is not bool:
        refuse(router, layer, "needs a whole number as top_k, and True or False as reads_inner")
    if not 0 < top_k < experts:
        return
    with torch.no_grad(), guarded(router, layer):
        choice: Any = choose.choice(tokens)
        count = len(tokens.x)
        shapes = {tuple(choice.experts.shape), tuple(choice.shares.shape)}
        if shapes != {(count, top_k)} or choice.experts.dtype != torch.int64:
            raise ValueError(f"experts and shares of a choice are ({count}, {top_k})")
        dense = choice.dense(experts)
    distinct = choice.experts.sort(1).values.diff(dim=1).ne(0).all()
    if not distinct or not torch.allclose(dense, c_TE.to(dense.dtype), atol=SUM_TOLERANCE):
        refuse(router, layer, "returned another choice than its coefficients")


def check_coefficients(router: Router, found: Any, tokens: int, experts: int, layer: str) -> None:
    """Check the coefficients of another package's router for some tokens at one layer.

    Raises:
        CompatibilityError: They are not (T, E) or (1, E), not finite, or do not sum to 1 although
            the declaration says so.
    """
    check_tensor(router, found, layer, "coefficients")
    if tuple(found.shape) not in ((tokens, experts), (1, experts)):
        refuse(
            router,
            layer,
            f"returned coefficients of shape {tuple(found.shape)} for {tokens} tokens and "
            f"{experts} experts, not (T, E) or (1, E)",
        )
    if not found.isfinite().all():
        refuse(router, layer, "returned coefficients that are not finite")
    if router.sums_to_one and (found.float().sum(1) - 1).abs().max() > SUM_TOLERANCE:
        refuse(
            router,
            layer,
            "returned coefficients whose rows do not sum to 1, and its declaration says that "
            "every row sums to 1 (sums_to_one)",
        )
