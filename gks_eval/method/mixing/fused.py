"""Choice, softmax and mixing of all experts as one operator, for GPUs.

As separate operators, they take about ten launches per layer, and each launch takes longer than
its work. The operator ``gks_eval::mix`` is a Triton kernel, see `gks_eval.method.mixing.kernel`.
The separate operators run without Triton, with gradients, for one choice per context, and for
routers that are not a top-k softmax over scores.

Among equal scores, the expert with the lower index is chosen; torch.topk does not define the order.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Final, get_args

import torch

from gks_eval.method.choice import Choice
from gks_eval.method.declaration import Tokens
from gks_eval.method.mixing.products import read_all
from gks_eval.method.mixing.split import accumulates_wide, joined_scores, wide_mm
from gks_eval.method.routers.top_k import LayerTopK, Scale
from gks_eval.method.weights import RoutedWeights

__all__ = ["can_fuse", "has_triton", "mixed_by_kernel"]

SCALES: Final = get_args(Scale)
MOST_CHOSEN: Final = 64
"""Largest k, unless all experts are chosen: each chosen expert takes one maximum over E."""
MOST_EXPERTS: Final = 4096
"""Largest E: the scores of a token are held in registers."""


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; torch's CUDA builds for Linux require it."""
    return find_spec("triton") is not None


def can_fuse(weights: RoutedWeights) -> bool:
    """Return whether `mixed_by_kernel` computes this layer, without gradients."""
    router, experts = weights.router, weights.experts
    return (
        weights.read.device.type == "cuda"
        and not weights.by_context
        and experts <= MOST_EXPERTS
        and isinstance(router, LayerTopK)
        # A subclass with another choice, such as LAG's, is excluded.
        and type(router).coefficients is LayerTopK.coefficients
        and (router.top_k <= MOST_CHOSEN or router.top_k >= experts)
        and has_triton()
    )


def mixed_by_kernel(x_TK: torch.Tensor, weights: RoutedWeights) -> tuple[torch.Tensor, Choice]:
    """Return what is multiplied with ``weights.write``, (T, M), and each token's choice."""
    router = weights.router
    assert isinstance(router, LayerTopK)
    inner = weights.write.shape[0]
    parts, unscale = 1, None
    if accumulates_wide(x_TK.device, x_TK.dtype) and weights.directions is None:
        read_TM = wide_mm(x_TK, weights.read)
        scores_TN, inner_TM = read_TM[:, inner:], read_TM[:, :inner]
        if weights.parts and router.scales_products:
            parts, unscale = weights.parts, weights.unscale  # the kernel adds them
        elif weights.parts:
            scores_TN = joined_scores(scores_TN, weights.parts, weights.unscale)
        scores_TN = router.raw(Tokens(x_TK, scores_TN, inner_TM))
    else:
        tokens = read_all(x_TK, weights)
        scores_TN, inner_TM = router.raw(tokens), tokens.inner
    top_k = router.top_k if 0 < router.top_k < weights.experts else weights.experts
    mixed_TM, experts_Tk, shares_Tk = torch.ops.gks_eval.mix(
        scores_TN,
        inner_TM,
        weights.rows.owner,
        router.dead,
        unscale,
        weights.present,
        weights.experts,
        weights.stacked,
        weights.rows.ranks,
        bool(weights.rank),
        parts,
        SCALES.index(router.of_raw),
        top_k,
        router.temperature,
        weights.write.dtype,
    )
    return mixed_TM, Choice(experts_Tk, shares_Tk)


_LIBRARY: Any = torch.library.Library("gks_eval", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "mix(Tensor scores, Tensor inner, Tensor? owner, Tensor? dead, Tensor? unscale,"
    " Tensor? present, int experts, int stacked, int ranks, bool factors, int parts,"
    " int scale, int top_k, float temperature, ScalarType dtype) -> (Tensor, Tensor, Tensor)"
)


def _results(
    scores: torch.Tensor, inner: torch.Tensor, *given: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top_k, _, dtype = given[-3:]
    tokens, width = inner.shape
    return (
        inner.new_empty((tokens, width), dtype=dtype),
        inner.new_empty((tokens, top_k), dtype=torch.int64),
        scores.new_empty((tokens, top_k), dtype=torch.float32),
    )


def _launch(
    scores: torch.Tensor, inner: torch.Tensor, *given: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from gks_eval.method.mixing.kernel import launch

    results = _results(scores, inner, *given)
    run: Any = launch
    with torch.cuda.device(scores.device):  # Triton launches on the current device
        run(scores, inner, *given[:-3], given[-2], results)
    return results


torch.library.register_fake("gks_eval::mix", _results, lib=_LIBRARY)
_LIBRARY.impl("mix", _launch, "CUDA")
