"""The method written a second time: float64, one token and one expert at a time.

Nothing here shares code with the package. Slow and obvious on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import dense

from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting


def residual_factors(
    task: LoraPair, general: Sequence[LoraPair], rule: str, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (A, B) of the residual for the rules that keep the rank."""
    A, B = task.A.double(), task.B.double()
    if not general or task.missing:
        return A, B
    mean_A = sum(pair.A.double() for pair in general) / len(general)
    mean_B = sum(pair.B.double() for pair in general) / len(general)
    if rule == "factors":
        return A - scale * mean_A, B - scale * mean_B
    basis_A = torch.linalg.qr(mean_A.T).Q
    basis_B = torch.linalg.qr(mean_B).Q
    removed_A, removed_B = A @ basis_A @ basis_A.T, basis_B @ basis_B.T @ B
    return A - scale * removed_A, B - scale * removed_B


def residual_dense(
    task: LoraPair, general: Sequence[LoraPair], rule: str, scale: float = 1.0
) -> torch.Tensor:
    """Return dW of the residual, (D, K); zero for a task adapter that leaves the layer alone."""
    if task.missing:
        return torch.zeros(task.shape, dtype=torch.float64)
    if rule == "delta":
        return dense(task) - scale * sum(dense(pair) / len(general) for pair in general)
    A, B = residual_factors(task, general, rule, scale)
    return task.scaling * B @ A


def top_direction(update: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the top right singular vector of a full matrix and its relative spectral gap."""
    _, singular, right = torch.linalg.svd(update)
    if singular[0] == 0:
        return torch.zeros_like(right[0]), 1.0
    second = float(singular[1]) if len(singular) > 1 else 0.0
    return right[0], 1.0 - second / float(singular[0])


def coefficients(scores: Sequence[float], top_k: int, temperature: float) -> list[float]:
    """Return the shares of one token: softmax over the `top_k` largest magnitudes."""
    order = sorted(range(len(scores)), key=lambda e: -abs(scores[e]))[:top_k]
    exponentials = {e: math.exp(abs(scores[e]) / temperature) for e in order}
    total = sum(exponentials.values())
    return [exponentials.get(e, 0.0) / total for e in range(len(scores))]


@dataclass
class Routed:
    """What the loops found.

    Attributes:
        update: (T, D).
        shares: (T, E).
        tie_gap: (T,), how far the last chosen score is above the first one left out, relative.
        spectral_gap: The smallest relative gap under a top singular value; prototypes of nearly
            degenerate updates are ill-defined.
        magnitude: (T, D), the same sums taken over absolute values: the scale of rounding errors.
    """

    update: torch.Tensor
    shares: torch.Tensor
    tie_gap: torch.Tensor
    spectral_gap: float
    magnitude: torch.Tensor


def routed(
    x_TK: torch.Tensor,
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    setting: Setting,
) -> Routed:
    """Return the routed update of every token, straight from the formulas."""
    rule = setting.rule if general else "factors"
    scale = setting.parameters["scale"] if general else 1.0
    residuals = [residual_dense(pair, general, rule, scale) for pair in experts]
    directions = [top_direction(update) for update in residuals]
    rows, shares, magnitudes, tie_gaps = [], [], [], []
    for x in x_TK.double():
        tie_gap = 1.0
        if setting.router == "arrow":
            scores = [float(x @ direction) for direction, _ in directions]
            share = coefficients(
                scores, setting.parameters["top_k"], setting.parameters["temperature"]
            )
            ordered = sorted((abs(score) for score in scores), reverse=True)
            if setting.parameters["top_k"] < len(scores):
                tie_gap = (
                    ordered[setting.parameters["top_k"] - 1] - ordered[setting.parameters["top_k"]]
                ) / (ordered[0] or 1)
        else:
            share = [1.0 / len(experts)] * len(experts)
        if setting.combine == "outputs":
            row = sum(c * (update @ x) for c, update in zip(share, residuals, strict=True))
        elif rule == "delta":
            mixed_A = sum(c * pair.A.double() for c, pair in zip(share, experts, strict=True))
            mixed_B = sum(c * pair.B.double() for c, pair in zip(share, experts, strict=True))
            row = experts[0].scaling * (mixed_B @ (mixed_A @ x))
            row = row - scale * sum(dense(pair) @ x for pair in general) / len(general)
        else:
            factors = [residual_factors(pair, general, rule, scale) for pair in experts]
            mixed_A = sum(c * A for c, (A, _) in zip(share, factors, strict=True))
            mixed_B = sum(c * B for c, (_, B) in zip(share, factors, strict=True))
            row = experts[0].scaling * (mixed_B @ (mixed_A @ x))
        rows.append(row)
        shares.append(share)
        tie_gaps.append(tie_gap)
        magnitudes.append(_magnitude(x, experts, general, rule, scale, setting.combine, share))
    return Routed(
        torch.stack(rows),
        torch.tensor(shares, dtype=torch.float64),
        torch.tensor(tie_gaps),
        min(gap for _, gap in directions),
        torch.stack(magnitudes),
    )


def _magnitude(
    x: torch.Tensor,
    experts: Sequence[LoraPair],
    general: Sequence[LoraPair],
    rule: str,
    scale: float,
    combine: str,
    share: Sequence[float],
) -> torch.Tensor:
    """Return sum |c| s |B| (|A| |x|) over what is really multiplied, (D,)."""
    exact = bool(general) and rule == "delta"
    parts = [
        (pair.A.double(), pair.B.double())
        if exact
        else residual_factors(pair, general, rule, scale)
        for pair in experts
    ]
    inner = [A.abs() @ x.abs() for A, _ in parts]
    if combine == "factors":
        mixed = sum(c * z for c, z in zip(share, inner, strict=True))
        inner = [mixed for _ in parts]
    total = sum(
        c * pair.scaling * (B.abs() @ z)
        for c, pair, (_, B), z in zip(share, experts, parts, inner, strict=True)
    )
    if exact:
        for pair in general:
            weight = abs(scale) * pair.scaling / len(general)
            total = total + weight * (pair.B.double().abs() @ (pair.A.double().abs() @ x.abs()))
    return total
