"""Scores whose squares are weighted sums of squared products of the token with fixed rows.

`spectral_pairs` replaces A with V^T, so that the inner activations already are the products with
the rows, and tokens need no other product. If a general part is subtracted once, the factors of the
task adapters are mixed; a small matrix then turns the inner activations into the products that a
score needs.

In a 16-bit layer V^T and the inner activations are rounded to the layer's type, each by up to
2^-9 of its size in bfloat16; everything after that is float32. If the small matrix would enlarge
these errors, the rows get their own float32 product instead. This happens under `delta` if the
general part's A is nearly the adapters' A, as with shared starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from typing_extensions import Self

from gks_eval.method.declaration import Layer, Prepared, Tokens
from gks_eval.method.lora import LoraPair
from gks_eval.method.routers.blocks import Blocks
from gks_eval.method.routers.spectrum import spectrum
from gks_eval.method.routers.top_k import TINY, LayerTopK, Scale

__all__ = ["LayerNorms", "Rows"]

# Rows of a matrix that are parallel to within rounding count as one when it is inverted.
_PARALLEL: Final = 1e-6
# Errors of inner activations may grow by this factor before the rows get their own product.
_ENLARGED: Final = 2.0


@dataclass(frozen=True)
class Rows:
    """Rows, (Q, K) float64, and the weights, (Q,), of a token's squared products with them."""

    rows: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def spanned(cls, pairs: Sequence[LoraPair]) -> list[Self]:
        """Return the rows of V^T, with weight 1, or 0 if the singular value is a rounding error."""
        return [cls(right, values.sign()) for values, right in spectrum(pairs)]


@dataclass(frozen=True)
class LayerNorms(LayerTopK):
    """Top-k softmax over norms such as ``|V_e^T x|``.

    Attributes:
        core: (M, N), turns inner activations into products; None if they already are.
        squares: (N, E), the weight of each squared product in each squared score.
        first: (E,), the first product of each expert.
        separate: Whether the rows have their own product with the token.

    Experts whose update is zero are dead.
    """

    core: Blocks | None
    squares: Blocks
    first: torch.Tensor
    separate: bool

    @property
    def reads_inner(self) -> bool:
        """Whether the products are, or follow from, inner activations."""
        return not self.separate

    @classmethod
    def at(
        cls,
        layer: Layer,
        whole: Sequence[Rows],
        own: Sequence[Rows],
        common: Rows | None = None,
        **parameters: Any,
    ) -> Prepared:
        """Prepare one layer.

        Args:
            layer: The layer.
            whole: Rows of the residuals; those of a zero update have zero weights.
            own: Rows of each expert's score, in the span of its A and the general part's A.
            common: Rows that all nonzero experts share, in the span of the general part's A.
            parameters: The other fields.
        """
        parts = [*own] if common is None else [*own, common]
        rows = torch.cat([part.rows for part in parts]).float()
        dead = torch.tensor([not part.weights.any() for part in whole])
        shared = rows.new_zeros(0, 1) if common is None else common.weights[:, None]
        squares = Blocks.of([part.weights[:, None] for part in own], shared * ~dead)
        read = torch.cat([pair.A for pair in layer.read])
        core, separate = None, False
        if not torch.equal(read, rows):
            blocks, below = _core(layer, own, common)
            separate = layer.rounded and _enlarges(blocks, below, layer.read, rows)
            core = None if separate else Blocks.of(blocks, below)
        sizes = torch.tensor([len(part.rows) for part in own])
        choose = cls(
            core=core,
            squares=squares,
            first=sizes.cumsum(0) - sizes,
            separate=separate,
            dead=dead if bool(dead.any()) else None,
            **parameters,
        )
        return Prepared(choose, rows if separate else None)

    def products(self, tokens: Tokens) -> torch.Tensor:
        """Return the products of the tokens with all rows, (T, N) float32."""
        if self.separate:
            return tokens.scores
        inner_TM = tokens.inner.float()
        return inner_TM if self.core is None else self.core(inner_TM)

    @property
    def of_raw(self) -> Scale:
        """Norms are roots of sums of squares."""
        return "root"

    def raw(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        return self._squared(self.products(tokens))

    def norms(self, products_TN: torch.Tensor) -> torch.Tensor:
        """Return the score of every expert, (T, E)."""
        return self._squared(products_TN).clamp_min(TINY).sqrt()

    def _squared(self, products_TN: torch.Tensor) -> torch.Tensor:
        return self.squares(products_TN * products_TN)

    def scores(self, tokens: Tokens) -> torch.Tensor:
        """Return (T, E)."""
        return self.norms(self.products(tokens))


def _core(
    layer: Layer, own: Sequence[Rows], common: Rows | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return C of ``[D_1; ...; D] = C^T [A_1; ...; A_g]``, as blocks and the rows below them."""
    factors = [pair.A for pair in layer.read]
    general = factors.pop() if layer.once is not None else factors[0][:0]
    blocks, below = [], []
    for A, part in zip(factors, own, strict=True):
        found = _in_terms_of(torch.cat([A, general]), part.rows)
        blocks.append(found[: len(A)])
        below.append(found[len(A) :])
    if common is not None:
        below.append(_in_terms_of(general, common.rows))
    return blocks, torch.cat(below, dim=1)


def _enlarges(
    blocks: Sequence[torch.Tensor],
    below: torch.Tensor,
    read: Sequence[LoraPair],
    rows: torch.Tensor,
) -> bool:
    """Return whether the core enlarges relative errors of inner activations more than twice."""
    parts = [*blocks, below] if len(below) else blocks
    errors = [
        (part * pair.A.norm(dim=1, keepdim=True)).norm()
        for part, pair in zip(parts, read, strict=True)
    ]
    return bool(torch.stack(errors).norm() > _ENLARGED * rows.norm())


def _in_terms_of(read: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return C of ``wanted = C^T read``, float32."""
    read = read.double()
    size = read.norm(dim=1)
    size = torch.where(size > 0, size, 1.0)
    inverse: torch.Tensor = torch.linalg.pinv(read / size[:, None], rtol=_PARALLEL)
    return (wanted @ inverse / size).T.float()
