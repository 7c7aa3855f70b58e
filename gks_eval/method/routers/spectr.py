"""SpectR: tokens go to the experts whose input span holds most of them."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from pydantic import Field
from typing_extensions import Self

from gks_eval.errors import UsageError
from gks_eval.method.declaration import Layer, Prepared
from gks_eval.method.decorators import router
from gks_eval.method.routers.norms import LayerNorms, Rows
from gks_eval.method.routers.spectrum import spectral_pairs
from gks_eval.method.routers.top_k import LevelledTopK

__all__ = ["spectr"]

# Squared sines of angles between spans count as 0 or 1 within this tolerance.
_ROUNDING: Final = 1e-6


class SpectrParameters(LevelledTopK):
    """Parameters of a router whose chosen experts may have equal weights."""

    weights: Literal["softmax", "equal"] = Field(
        default="softmax", description="Softmax of the scores, or 1/top_k for each chosen expert."
    )

    def fitted(self, experts: int) -> Self:
        """Return these values with a top_k of at most `experts`.

        Raises:
            UsageError: A larger top_k was given, or a temperature that equal weights ignore.
        """
        if self.weights == "equal" and self.temperature != 1.0:
            raise UsageError(
                f"temperature={self.temperature:g} has no effect with weights=equal; leave it out."
            )
        return super().fitted(experts)


@router(
    paper="Fleshman and Van Durme 2025, https://arxiv.org/abs/2504.03454",
    parameters=SpectrParameters,
    basis=spectral_pairs,
)
def spectr(layer: Layer, parameters: SpectrParameters) -> Prepared:
    """Softmax over the largest ``|V_e^T x|``; ``dW_e = U_e S_e V_e^T`` is its SVD.

    V_e^T, (Q, K), has one row per singular value that is not a rounding error; the values do not
    weight the rows. The factors that are mixed are ``A = V^T``, ``B = U S``, not the adapters'
    factors. An expert whose residual is zero is chosen only after all others. The authors' code
    corresponds to ``weights=equal;top_k=4`` with ``combine=factors``.
    """
    temperature = math.inf if parameters.weights == "equal" else parameters.temperature
    spans = Rows.spanned(layer.residuals)
    own, common = spans, None
    if layer.once is not None:
        own, common = _beyond_general(spans, *Rows.spanned([layer.once]))
    chosen = {"top_k": parameters.top_k, "temperature": temperature}
    return LayerNorms.at(layer, spans, own, common, **chosen)


def _beyond_general(spans: list[Rows], general: Rows) -> tuple[list[Rows], Rows | None]:
    """Return what each span adds to the general part's span, and the latter, if all contain it.

    These are R rows per expert and G common rows, instead of R + G rows per expert.
    """
    own = []
    for span in spans:
        if not span.weights.any():
            own.append(span)
            continue
        shared = span.rows @ general.rows.T
        values, vectors = torch.linalg.eigh(span.weights.diag() - shared @ shared.T)
        beyond = values.round()
        missing = beyond.sum() + general.weights.sum() - span.weights.sum()
        if missing != 0 or (values - beyond).abs().max() > _ROUNDING:
            return spans, None
        own.append(Rows((vectors.T @ span.rows)[beyond > 0], beyond[beyond > 0]))
    return own, general
