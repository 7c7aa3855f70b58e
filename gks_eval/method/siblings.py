"""Layers that read the same tensor share one read product, one scoring and one choice.

Queries, keys and values are linear layers of one input, and so are a gate and its up projection.
For few tokens or narrow layers, a routed layer's many small operators take longer than its two
products. L siblings run all of them once, up to the mixing, with stacked A's and directions P:
``z = x [A_1; ...; A_L; P_1; ...; P_L]^T``.

The first sibling that is called computes the parts of all. The others take theirs if their input is
the same tensor object and unchanged, and compute their own if not. Layers that turn out to read
different tensors stop sharing.

Only plain inference on a CPU is shared: by the plan ``all``, without gradients or torch.compile,
and outside of inference mode, in which tensors do not count their changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any, Final

import torch
from typing_extensions import Self

from gks_eval.method.declaration import Tokens
from gks_eval.method.mixing.dense import mixed_densely
from gks_eval.method.mixing.plan import plan_of
from gks_eval.method.mixing.products import wide_product
from gks_eval.method.routers.arrow import LayerArrow
from gks_eval.method.routers.standardised import LayerStandardised
from gks_eval.method.routers.top_k import LayerTopK
from gks_eval.method.weights import RoutedWeights

__all__ = ["Siblings", "same_input"]

SAME_INPUT: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Last parts of the names of layers in one module that usually read the same tensor."""
MISSES: Final = 2
"""Sharing stops after this many inputs in a row that not all siblings have read.

The first one may be a forward that was interrupted."""


def same_input(names: Iterable[str]) -> list[list[str]]:
    """Return the layers in groups that usually read the same tensor, by their names."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        alike = next((lasts for lasts in SAME_INPUT if last in lasts), (last,))
        found.setdefault((parent, *alike), []).append(name)
    return [*found.values()]


@dataclass(slots=True)
class _Kept:
    """What one thread computed for one input; dropped when every sibling has taken its part.

    Attributes:
        x: The input, which is not kept alive.
        version: Of its contents.
        mixed: (T, M) of every layer, None where it is taken.
        left: Number of layers that have not taken theirs.
        coefficients: (T, L, E).
    """

    x: weakref.ref[torch.Tensor]
    version: int
    mixed: list[torch.Tensor | None]
    left: int
    coefficients: torch.Tensor


class Siblings:
    """L layers that usually read the same tensor.

    Attributes:
        weights: The layers' weights. Their factors and directions are views of the stacked ones:
            nothing is held twice.
    """

    def __init__(self, held: Sequence[RoutedWeights], router: LayerTopK) -> None:
        one, layers = held[0], len(held)
        inner = one.write.shape[0]
        A_LMK = torch.cat([each.read[:inner] for each in held])
        P_LEK = torch.cat([_directions(each) for each in held])
        self._read_columns, self._separate = A_LMK.T, None if one.directions is None else P_LEK
        if self._separate is None:
            read = torch.cat([A_LMK, P_LEK])
            A_LMK, P_LEK = read[: len(A_LMK)], read[len(A_LMK) :]
            self._read_columns = read.T
        views = zip(held, A_LMK.chunk(layers), P_LEK.chunk(layers), strict=True)
        self.weights = [replace(each, read=A, directions=P) for each, A, P in views]
        self._router = router
        self._split = [inner] * layers
        if self._separate is None:
            self._split.append(layers * one.experts)
        self._scores_shape = -1, layers, one.experts
        rank = one.rows.ranks
        alike = rank and not one.rank and not any(each.present is not None for each in held)
        # Rows of a general part stay as they are.
        self._experts_shape = (layers, one.experts, rank) if alike else None
        self._misses = 0
        self._kept: dict[int, _Kept] = {}

    @classmethod
    def of(cls, weights: Sequence[RoutedWeights | None]) -> Self | None:
        """Return the siblings with these weights, or None if they cannot share."""
        held = [one for one in weights if one is not None and _can_share(one)]
        routers = [one.router for one in held if isinstance(one.router, LayerTopK)]
        shareable = len(weights) == len(held) == len(routers) > 1
        if not shareable or len({*map(_alike, held)}) > 1:
            return None
        dead = None
        if any(router.dead is not None for router in routers):
            none = torch.zeros(held[0].experts, dtype=torch.bool)
            dead = torch.stack([none if one.dead is None else one.dead for one in routers])
        return cls(held, replace(routers[0], dead=dead))

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies of a model take over; what is kept for an input is left out."""
        return {**vars(self), "_kept": {}}

    def part(
        self, place: int, weights: RoutedWeights, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return a layer's part of what is shared, or None if it has to compute its own.

        Args:
            place: The layer's index.
            weights: What it adds now; if these are not those of `Siblings.weights`, it is alone.
            x: Its input, (..., K).

        Returns:
            What is multiplied with ``weights.write``, (T, M), and the coefficients of all siblings,
            (T, L, E).
        """
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or weights is not self.weights[place]
            or self._misses >= MISSES
            or x.is_inference()
        ):
            return None
        thread = get_ident()
        kept = self._kept.get(thread)
        if kept is not None:
            mixed_TM = kept.mixed[place]
            if mixed_TM is not None and kept.x() is x and kept.version == x._version:
                kept.mixed[place] = None
                kept.left -= 1
                if not kept.left:
                    del self._kept[thread]
                    self._misses = 0
                return mixed_TM, kept.coefficients
            del self._kept[thread]
            self._misses += 1
            if self._misses >= MISSES:
                return None
        read, width = weights.read, x.shape[-1]
        if (
            x.dtype != read.dtype
            or x.device != read.device
            or plan_of(x.numel() // width, self.weights[0]) != "all"
        ):
            return None
        parts, coefficients = self._computed(x.reshape(-1, width))
        others: list[torch.Tensor | None] = [*parts]
        others[place] = None
        left = len(parts) - 1
        self._kept[thread] = _Kept(weakref.ref(x), x._version, others, left, coefficients)
        return parts[place], coefficients

    def _computed(self, x_TK: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return every layer's part, (T, M), and the coefficients, (T, L, E)."""
        z = torch.mm(x_TK, self._read_columns)
        mixed = [*z.split_with_sizes(self._split, 1)]
        directions = self._separate
        scores = mixed.pop() if directions is None else wide_product(x_TK, directions)
        scores = self._router.scores(Tokens(x_TK, scores, z))
        c_TLE = self._router.chosen(scores.view(self._scores_shape))
        if self._experts_shape is not None:
            layers, experts, rank = self._experts_shape
            size = x_TK.shape[0], layers, experts, rank
            steps = z.stride(0), self._split[0], rank, 1
            z.as_strided(size, steps).mul_(c_TLE.unsqueeze(-1))
            return mixed, c_TLE
        of_layers = zip(c_TLE.unbind(1), mixed, self.weights, strict=True)
        return [mixed_densely(*of_one) for of_one in of_layers], c_TLE


def _directions(weights: RoutedWeights) -> torch.Tensor:
    return weights.fused if weights.directions is None else weights.directions


def _can_share(weights: RoutedWeights) -> bool:
    """Return whether scores are an elementwise function of the products with E directions.

    A subclass may compute them otherwise.
    """
    return (
        type(weights.router) in (LayerArrow, LayerStandardised)
        and not weights.by_context
        and weights.read.device.type == "cpu"
        and weights.read.dtype != torch.float64
        and len(_directions(weights)) == weights.experts
    )


def _alike(weights: RoutedWeights) -> tuple[object, ...]:
    """Return what siblings have in common."""
    router, read = weights.router, weights.read
    assert isinstance(router, LayerTopK)
    sizes = weights.write.shape[0], weights.stacked, weights.rows.ranks, weights.experts
    return read.shape, read.dtype, weights.rank, *sizes, replace(router, dead=None)
