"""The routed update of one linear layer, in two matrix products.

With ``z = x [A_1; ...; A_E]^T`` and the coefficients c of a router, for every token:

- ``outputs`` (PEFT): ``y = sum_e c_e s_e B_e A_e x``, that is ``[c_1 z_1 | ...] @ [s_e B_e]^T``.
- ``factors`` (the authors, MTTL): ``y = s (sum_e c_e B_e)(sum_e c_e A_e) x``, that is
  ``[c_1 zbar | ...] @ [s B_e]^T`` with ``zbar = sum_e c_e z_e``.

Coefficients sum to 1, so subtracting dW_g exactly from every expert costs one extra adapter, not
one an expert: ``sum_e c_e (dW_e - dW_g) = (sum_e c_e dW_e) - dW_g``.

Nothing of size tokens x experts x D is ever allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from gks_eval.arrow import arrow_coefficients, prototypes
from gks_eval.config.setting import Setting
from gks_eval.lora import LoraPair, same_factors
from gks_eval.subtract import general_update, subtract

__all__ = [
    "ArrowRouter",
    "FixedRouter",
    "RoutedWeights",
    "Router",
    "build",
    "inner",
    "routed_delta",
    "to_device",
    "wide_product",
]

WIDENED_AT_ONCE = 256
"""Tokens whose 16-bit activations are widened for their scores at a time, on a CPU."""


class Router(Protocol):
    """Chooses mixing coefficients; the seam for further routers."""

    @property
    def needs_scores(self) -> bool:
        """Whether `coefficients` reads the tokens' scores against the prototypes."""
        ...

    def coefficients(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return float32 coefficients, (T, E), or (1, E) where all tokens share them.

        Every row sums to 1. `scores_TE` is empty, (0, E), unless `needs_scores`.
        """
        ...


@dataclass(frozen=True)
class ArrowRouter:
    """Top-k softmax over ``|x . prototype|``, see `gks_eval.arrow`; `dead` is (E,) bool."""

    top_k: int
    temperature: float
    dead: torch.Tensor | None = None

    needs_scores = True

    def coefficients(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return (T, E)."""
        return arrow_coefficients(scores_TE, self.top_k, self.temperature, self.dead)


@dataclass(frozen=True)
class FixedRouter:
    """The same coefficients, (E,), for every token."""

    shares: torch.Tensor

    needs_scores = False

    def coefficients(self, scores_TE: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return (1, E)."""
        return self.shares.unsqueeze(0)


@dataclass(frozen=True)
class RoutedWeights:
    """What one layer needs to add its routed update; M is the sum of all stacked ranks.

    Attributes:
        router: Chooses the coefficients.
        read: (N, K). The stacked A's of the experts and of the general part, (M, K); in float32
            with the prototypes on top, (E + M, K), so that one product serves both.
        write: (M, D), the stacked ``s B^T``; rows of the general part are negated.
        owner: (M_e,), the expert that each of the experts' rows belongs to.
        rank: Rank common to the experts, for ``factors``; 0 for ``outputs``.
        prototypes: (E, K) float32 where `read` does not hold them and the router reads scores.
        experts: E.
    """

    router: Router
    read: torch.Tensor
    write: torch.Tensor
    owner: torch.Tensor
    rank: int
    prototypes: torch.Tensor | None
    experts: int

    @property
    def fused(self) -> bool:
        """Whether the prototypes are the first rows of `read`."""
        return self.read.shape[0] > self.write.shape[0]

    def nbytes(self) -> int:
        """Return the memory of all tensors, in bytes."""
        held = [self.read, self.write, self.owner]
        held += [] if self.prototypes is None else [self.prototypes]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def build(
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    setting: Setting,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    measure: Callable[[Sequence[LoraPair], Sequence[LoraPair], Sequence[LoraPair]], None]
    | None = None,
) -> RoutedWeights:
    """Prepare one layer.

    Args:
        experts: The task adapters at this layer; only the one chosen for ``router=<name>``.
        general: The general adapters whose mean is subtracted; empty for none.
        setting: Rule, combine, router, top_k and temperature.
        dtype: Type of the layer's activations. Scores are float32 whatever it is: in 16-bit layers
            the prototypes stay in float32 and have a product of their own.
        device: Where the layer computes.
        measure: Called with the experts, the general adapters and the residuals, in float32.

    Raises:
        CompatibilityError: Ranks or scalings differ where the rule or combination needs them equal.
    """
    experts = [pair.to(torch.float32) for pair in experts]
    general = [pair.to(torch.float32) for pair in general]
    residuals = [subtract(pair, general, setting.rule) for pair in experts]
    if measure is not None:
        measure(experts, general, residuals)
    exact = bool(general) and setting.rule == "delta"
    # Under the exact rule the mixture is taken over the task adapters and the general part
    # subtracted once; only the prototypes come from the residuals.
    mixed = experts if exact else residuals
    if setting.combine == "factors":
        same_factors(mixed, "combine=factors")
    parts_A = [pair.A for pair in mixed]
    parts_B = [pair.scaling * pair.B.T for pair in mixed]
    owner = torch.cat([torch.full((pair.rank,), e) for e, pair in enumerate(mixed)])
    if exact:
        once = general_update(general)
        parts_A.append(once.A)
        parts_B.append(-once.B.T)

    router: Router
    prototypes_EK: torch.Tensor | None = None
    if setting.router == "arrow":
        prototypes_EK = prototypes(residuals)
        dead = ~prototypes_EK.any(dim=1)
        router = ArrowRouter(
            setting.top_k, setting.temperature, dead.to(device) if bool(dead.any()) else None
        )
    else:
        count = len(experts)
        router = FixedRouter(torch.full((count,), 1.0 / count, device=device))
    fused = prototypes_EK is not None and dtype in (torch.float32, torch.float64)
    if fused and prototypes_EK is not None:
        parts_A.insert(0, prototypes_EK)
        prototypes_EK = None
    return RoutedWeights(
        router=router,
        read=torch.cat(parts_A).to(device, dtype).contiguous(),
        write=torch.cat(parts_B).to(device, dtype).contiguous(),
        owner=owner.to(device),
        rank=mixed[0].rank if setting.combine == "factors" else 0,
        prototypes=None if prototypes_EK is None else prototypes_EK.to(device),
        experts=len(experts),
    )


def inner(x_TK: torch.Tensor, weights: RoutedWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted inner activations, (T, M), and the coefficients, (T, E) or (1, E).

    ``inner(x)[0] @ weights.write`` is the routed update.
    """
    read_TN = x_TK @ weights.read.T
    experts = weights.experts
    fused = experts if weights.fused else 0
    z_TM = read_TN[:, fused:]
    if not weights.router.needs_scores:
        scores_TE = x_TK.new_empty((0, experts), dtype=torch.float32)
    elif weights.prototypes is None:
        assert fused, "a router that reads scores needs weights built with prototypes"
        scores_TE = read_TN[:, :experts]
    else:
        scores_TE = wide_product(x_TK, weights.prototypes)
    c_TE = weights.router.coefficients(scores_TE)
    stacked = weights.owner.shape[0]
    experts_TM = z_TM[:, :stacked]
    if weights.rank:
        z_TER = experts_TM.reshape(-1, experts, weights.rank)
        zbar_TR = (c_TE.unsqueeze(-1) * z_TER).sum(1)
        mixed_TM = (c_TE.unsqueeze(-1) * zbar_TR.unsqueeze(1)).flatten(1)
    else:
        mixed_TM = c_TE[:, weights.owner] * experts_TM
    # Coefficients are float32: the products are rounded to the layer's type once, here.
    if torch.is_grad_enabled():
        # The backward pass still needs what writing in place would overwrite.
        return torch.cat([mixed_TM.to(z_TM.dtype), z_TM[:, stacked:]], dim=1), c_TE
    z_TM[:, :stacked] = mixed_TM
    return z_TM, c_TE


def wide_product(x_TK: torch.Tensor, prototypes_EK: torch.Tensor) -> torch.Tensor:
    """Return the scores of 16-bit activations, ``x . p_e`` in float32, (T, E)."""
    # A widened copy of all tokens at once would leave the cache of a CPU, and be most of the
    # memory that routing takes.
    if torch.is_grad_enabled() or x_TK.device.type != "cpu" or x_TK.shape[0] <= WIDENED_AT_ONCE:
        return x_TK.float() @ prototypes_EK.T
    scores_TE = x_TK.new_empty((x_TK.shape[0], prototypes_EK.shape[0]), dtype=torch.float32)
    for start in range(0, x_TK.shape[0], WIDENED_AT_ONCE):
        part = slice(start, start + WIDENED_AT_ONCE)
        torch.mm(x_TK[part].float(), prototypes_EK.T, out=scores_TE[part])
    return scores_TE


def routed_delta(x_TK: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    """Return the routed update of each token, (T, D)."""
    return inner(x_TK, weights)[0] @ weights.write


def to_device(weights: RoutedWeights, device: torch.device) -> RoutedWeights:
    """Return the weights on another device."""
    router = weights.router
    if isinstance(router, ArrowRouter) and router.dead is not None:
        router = replace(router, dead=router.dead.to(device))
    elif isinstance(router, FixedRouter):
        router = FixedRouter(router.shares.to(device))
    return replace(
        weights,
        router=router,
        read=weights.read.to(device),
        write=weights.write.to(device),
        owner=weights.owner.to(device),
        prototypes=None if weights.prototypes is None else weights.prototypes.to(device),
    )
