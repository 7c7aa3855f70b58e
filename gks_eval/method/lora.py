"""A low-rank update of one linear layer, as a pair of factors.

Shapes throughout the package: T tokens, E experts, R rank, K input width, D output width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isclose, sqrt
from typing import Final, Protocol, TypeVar

import torch

from gks_eval.errors import CompatibilityError

__all__ = [
    "EXACT",
    "LoraPair",
    "average_factors",
    "inner_product",
    "no_update",
    "one_of_each",
    "same_factors",
    "stack",
    "update_norm",
]

EXACT: Final = "rule=delta with combine=outputs (preset=exact)"
"""The arguments that allow unequal layers, ranks and scalings, for messages."""


@dataclass(frozen=True)
class LoraPair:
    """The update dW = scaling * B @ A of one linear layer (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        A: (R, K), reads the layer's input.
        B: (D, R), writes to its output.
        scaling: lora_alpha / R, or lora_alpha / sqrt(R) for rank-stabilised LoRA.
        missing: Whether the adapter does not update the layer; then dW is zero, see `no_update`.

    Raises:
        ValueError: The shapes of A and B do not match.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float = 1.0
    missing: bool = False

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(
                f"A {tuple(self.A.shape)} and B {tuple(self.B.shape)} are not (R, K) and (D, R)"
            )

    def __repr__(self) -> str:
        update = "no update" if self.missing else f"scaling {self.scaling:g}"
        dtype = str(self.A.dtype).removeprefix("torch.")
        return f"LoraPair(A {tuple(self.A.shape)}, B {tuple(self.B.shape)}, {update}, {dtype})"

    @property
    def rank(self) -> int:
        """Return R, the number of rows of A."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (D, K), the shape of the layer's weight."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def kind(self) -> tuple[object, ...]:
        """Return what `same_factors` compares."""
        return *self.B.shape, self.A.shape[1], self.scaling, self.missing

    def delta(self) -> torch.Tensor:
        """Return dW = scaling * B @ A, (D, K)."""
        return self.scaling * (self.B @ self.A)

    def to(self, dtype: torch.dtype) -> LoraPair:
        """Return the pair with factors of another dtype."""
        if self.A.dtype == self.B.dtype == dtype:
            return self
        return replace(self, A=self.A.to(dtype), B=self.B.to(dtype))


def no_update(shape: tuple[int, int]) -> LoraPair:
    """Return a zero pair of rank 1, for an adapter that does not update a (D, K) layer."""
    return LoraPair(torch.zeros(1, shape[1]), torch.zeros(shape[0], 1), missing=True)


def inner_product(one: LoraPair, other: LoraPair) -> float:
    """Return the Frobenius inner product of two updates of one layer, in float64.

    ``<dW_1, dW_2> = s_1 s_2 sum((B_1^T B_2) * (A_1 A_2^T))``: no dW is formed.
    """
    write = one.B.double().T @ other.B.double()
    read = one.A.double() @ other.A.double().T
    return float(one.scaling * other.scaling * (write * read).sum())


def update_norm(pair: LoraPair) -> float:
    """Return ``||dW||_F`` in float64; no update is written out."""
    return sqrt(max(0.0, inner_product(pair, pair)))


def stack(pairs: Sequence[LoraPair], weights: Sequence[float]) -> LoraPair:
    """Return one pair whose update is the weighted sum of the updates.

    ``dW = sum_i w_i s_i B_i A_i`` with ``B = [w_1 s_1 B_1 | ...]``, ``A = [A_1; ...]`` and scaling
    1; its rank is the sum of the ranks, so ranks and scalings may differ.

    Raises:
        ValueError: No pairs, or not one weight per pair.
        CompatibilityError: The pairs are for layers of different shape.
    """
    if not pairs or len(pairs) != len(weights):
        raise ValueError("stack needs at least one pair and one weight per pair")
    if len({pair.shape for pair in pairs}) > 1:
        raise CompatibilityError(
            "updates of layers of different shape cannot be added: "
            + ", ".join(str(pair.shape) for pair in pairs)
        )
    factors_B = [w * pair.scaling * pair.B for pair, w in zip(pairs, weights, strict=True)]
    return LoraPair(torch.cat([pair.A for pair in pairs]), torch.cat(factors_B, dim=1))


KindT = TypeVar("KindT", bound="HasKind")


class HasKind(Protocol):
    """Something whose `kind` decides whether it passes a check."""

    @property
    def kind(self) -> tuple[object, ...]: ...


def one_of_each(members: Iterable[KindT]) -> list[KindT]:
    """Return the first member of each kind, for a check that depends on the kind only."""
    found: dict[tuple[object, ...], KindT] = {}
    for member in members:
        found.setdefault(member.kind, member)
    return list(found.values())


def same_factors(pairs: Sequence[LoraPair], why: str, instead: str = EXACT) -> None:
    """Check that factors can be added entry by entry.

    Args:
        pairs: At least one.
        why: What needs it; the error's sentence starts with it.
        instead: What allows unequal ranks and scalings.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ, or an adapter does not update the
        layer.
    """
    first = pairs[0]
    for pair in one_of_each(pairs[1:]):
        if pair.shape != first.shape:
            raise CompatibilityError(
                f"{why} needs adapters for layers of one shape, not {first.shape} and {pair.shape}."
            )
        if pair.missing != first.missing:
            raise CompatibilityError(
                f"{why} needs every adapter to update the layer; {instead} does not."
            )
        if pair.rank != first.rank:
            raise CompatibilityError(
                f"{why} needs one rank, not {first.rank} and {pair.rank}; "
                f"{instead} allows different ranks."
            )
        # Scalings are quotients; the tolerance is for their rounding errors.
        if not isclose(pair.scaling, first.scaling, rel_tol=1e-6):
            raise CompatibilityError(
                f"{why} needs one scaling, not {first.scaling:.9g} and {pair.scaling:.9g}; "
                f"{instead} allows different scalings."
            )


def average_factors(pairs: Sequence[LoraPair]) -> LoraPair:
    """Return the mean factors, ``A = mean(A_i)``, ``B = mean(B_i)``, as the published code does.

    Its update is not the mean of the updates; `stack` with weights 1/n gives that.

    Raises:
        CompatibilityError: Shapes, ranks or scalings differ.
    """
    same_factors(pairs, "averaging the factors of general adapters")
    return LoraPair(
        torch.stack([pair.A for pair in pairs]).mean(0),
        torch.stack([pair.B for pair in pairs]).mean(0),
        pairs[0].scaling,
    )
