"""Pico: output directions that experts share are scaled down before the merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import torch
from pydantic import Field

from gks_eval.method.declaration import Parameters
from gks_eval.method.decorators import joint_rule
from gks_eval.method.lora import LoraPair, update_norm
from gks_eval.method.rules.rounding import ROUNDING

__all__ = ["pico"]

_NOISE: Final = ROUNDING * torch.finfo(torch.float32).eps


class Calibrated(Parameters):
    """Parameters of Pico."""

    rescale: Literal["merged", "each", "none"] = Field(
        default="merged",
        description="Which update gets its norm back: merged, each or none.",
    )


def _rescaled(merged: LoraPair, experts: Sequence[LoraPair], parameters: Calibrated) -> LoraPair:
    """Return the merged update with the mean of the experts' norms."""
    if parameters.rescale != "merged":
        return merged
    return _with_norm(merged, sum(map(update_norm, experts)) / len(experts))


@joint_rule(
    paper="Tang and Yang 2026, https://arxiv.org/abs/2604.16826",
    parameters=Calibrated,
    after_merge=_rescaled,
)
def pico(experts: Sequence[LoraPair], parameters: Calibrated) -> list[LoraPair]:
    """``B_e - U (I - D) U^T B_e``: output directions that experts share are scaled down.

    From the SVD ``[s_1 B_1 | ... | s_E B_E] = U S V``; direction i has the share
    ``q_i = S_i^2 / sum(S^2)`` and the factor ``D_i = 1 / (1 + (E - 1) q_i)``. A is not changed.
    With ``rescale=merged``, the merged update is multiplied so that its Frobenius norm is the mean
    of the experts' norms before the calibration; the merge's lambda then only gives the sign. A
    router has no merged update; ``rescale=each`` restores the norm of every expert.

    The calibration and both ways of rescaling are those of the authors' code,
    https://github.com/yixuantt/Pico; the paper's text was not compared beyond its abstract. The
    code leaves out the scalings of the B's, which is the same if scalings are equal. Only the
    stacked B's are decomposed; ranks may differ.
    """
    stacked = torch.cat([pair.scaling * pair.B.double() for pair in experts], dim=1)
    left, singular, _ = torch.linalg.svd(stacked, full_matrices=False)
    share = singular**2 / (singular**2).sum().clamp_min(torch.finfo(torch.float64).tiny)
    change = 1 / (1 + (len(experts) - 1) * share) - 1
    found = []
    for pair in experts:
        B = pair.B.double()
        B = B + left @ (change.unsqueeze(1) * (left.T @ B))
        calibrated = replace(pair, B=B.to(pair.B.dtype))
        if parameters.rescale == "each":
            calibrated = _with_norm(calibrated, update_norm(pair))
        found.append(calibrated)
    return found


def _with_norm(pair: LoraPair, norm: float) -> LoraPair:
    # B is multiplied, not the scaling: merges on the factors need equal scalings. An update that
    # is a rounding error of float32 factors is zero: with a norm it would be arbitrary.
    own = update_norm(pair)
    ratio = norm / own if own > _NOISE * norm else 0.0
    return replace(pair, B=pair.B * ratio)
