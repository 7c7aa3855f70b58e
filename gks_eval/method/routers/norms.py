"""Scores from an update's whole spectrum: norms of ``V_e^T x`` with ``dW_e = U_e S_e V_e^T``.

V^T takes the place of A in what the mixture reads (`spectral_pair`), so that the inner activations
are ``V_e^T x`` already and the tokens need no further product. Only where a general part is
subtracted once, and the factors that are mixed are those of the task adapters, a small matrix turns
the inner activations into ``V_e^T x`` of the residuals.

In a 16-bit layer V^T and the inner activations are rounded to the layer's type, each by up to
2^-9 of its size in bfloat16. Everything after that is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from typing_extensions import Self

from gks_eval.method.declaration import Layer, Tokens
from gks_eval.method.routers.spectrum import spectrum
from gks_eval.method.routers.top_k import top_k_softmax

__all__ = ["LayerNorms"]

# The smallest normal float32: a root of zero has no gradient.
_TINY: Final = 2.0**-126
# Rows of a matrix that are parallel to within rounding count as one when it is inverted.
_PARALLEL: Final = 1e-6


@dataclass(frozen=True)
class LayerNorms:
    """Top-k softmax over ``|V_e^T x|`` or ``|S_e V_e^T x|``.

    N is the number of rows of all V_e^T, M that of the inner activations.

    Attributes:
        core: (M, N) float32, turns inner activations into ``V_e^T x``; None where they are that.
        squares: (N, E) float32, what the square of each row's product adds to an expert's score.
        first: (E,), the first row of each expert.
        dead: (E,) bool, experts whose update is zero; None where none is.
        top_k: Experts mixed per token.
        temperature: Divides the norms before the softmax.
    """

    core: torch.Tensor | None
    squares: torch.Tensor
    first: torch.Tensor
    dead: torch.Tensor | None
    top_k: int
    temperature: float

    @classmethod
    def at(cls, layer: Layer, *, weighted: bool, **parameters: Any) -> Self:
        """Prepare one layer.

        Args:
            layer: The layer.
            weighted: Whether the singular values weigh the directions.
            parameters: The other fields.
        """
        spectra = [spectrum(pair) for pair in layer.residuals]
        weights = [values.square() if weighted else values.sign() for values, _ in spectra]
        dead = torch.tensor([not values.any() for values, _ in spectra])
        ranks = torch.tensor([*map(len, weights)])
        return cls(
            core=_core(layer, [rows for _, rows in spectra]),
            squares=_diagonal([column[:, None] for column in weights]).float(),
            first=ranks.cumsum(0) - ranks,
            dead=dead if bool(dead.any()) else None,
            **parameters,
        )

    def products(self, tokens: Tokens) -> torch.Tensor:
        """Return ``V_e^T x`` of all experts, (T, N) float32."""
        inner_TM = tokens.inner.float()
        return inner_TM if self.core is None else inner_TM @ self.core

    def norms(self, products_TN: torch.Tensor) -> torch.Tensor:
        """Return the score of every expert, (T, E)."""
        return (products_TN * products_TN @ self.squares).clamp_min(_TINY).sqrt()

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        norms_TE = self.norms(self.products(tokens))
        return top_k_softmax(norms_TE, self.top_k, self.temperature, self.dead)


def _core(layer: Layer, directions: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return C of ``[V_1^T; ...] = C^T [A_1; ...; A_g]``, (M, N); None for the identity."""
    mixed = layer.residuals if layer.mixed is None else layer.mixed
    factors = [pair.A for pair in mixed]
    general = factors[0][:0] if layer.once is None else layer.once.A
    if layer.once is None and torch.equal(torch.cat(factors), torch.cat([*directions]).float()):
        return None
    blocks = []
    for A, wanted in zip(factors, directions, strict=True):
        read = torch.cat([A, general]).double()
        size = read.norm(dim=1)
        size = torch.where(size > 0, size, 1.0)
        found = wanted @ torch.linalg.pinv(read / size[:, None], rtol=_PARALLEL) / size
        blocks.append(found.T.float().split([len(A), len(general)]))
    own = _diagonal([block for block, _ in blocks])
    return torch.cat([own, torch.cat([block for _, block in blocks], dim=1)])


def _diagonal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    diagonal: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return diagonal
