"""The Triton kernel of `gks_eval.method.mixing.fused`; imported only where it runs.

Each program computes one token. The scores of all E experts fit into its registers, so top-k takes
k maxima, without a sort. The coefficient of an expert follows from its score, the rank and index of
the last chosen expert, and the softmax's maximum and sum. It is computed again wherever it is
needed, so threads exchange no coefficients.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

__all__ = ["launch"]

_BLOCK = 256
_TILE = 1024
_TINY = 2.0**-126


@triton.jit
def _score(scores, e, inside, experts, unscale, PARTS: tl.constexpr, SCALE: tl.constexpr,
           UNSCALE: tl.constexpr):  # fmt: skip
    s = tl.load(scores + e, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        s += tl.load(scores + part * experts + e, mask=inside, other=0.0).to(tl.float32)
    if UNSCALE:
        s *= tl.load(unscale + e, mask=inside, other=1.0)
    if SCALE == 1:
        s = tl.abs(s)
    if SCALE == 2:
        s = tl.sqrt_rn(tl.maximum(s, 1.1754943508222875e-38))
    return s


@triton.jit
def _rank(s, e, inside, dead, DEAD: tl.constexpr):
    # As in torch.topk, NaN is the largest number. The lowest finite number is for dead experts.
    rank = tl.where(s != s, float("inf"), s)
    if DEAD:
        gone = tl.load(dead + e, mask=inside, other=0) != 0
        rank = tl.where(gone, -3.4028234663852886e38, rank)
    return tl.where(inside, rank, -float("inf"))


@triton.jit
def _coefficient(scores, e, inside, experts, unscale, dead, last_rank, last, highest, total,
                 temperature, SOME: tl.constexpr, PARTS: tl.constexpr, SCALE: tl.constexpr,
                 DEAD: tl.constexpr, UNSCALE: tl.constexpr):  # fmt: skip
    s = _score(scores, e, inside, experts, unscale, PARTS, SCALE, UNSCALE)
    c = tl.exp((s - highest) / temperature) / total
    if SOME:
        rank = _rank(s, e, inside, dead, DEAD)
        kept = (rank > last_rank) | ((rank == last_rank) & (e <= last))
        c = tl.where(kept, c, 0.0)
    return c


@triton.jit
def mix(scores, inner, owner, dead, unscale, present, mixed, chosen, shares, scores_stride,
        inner_stride, experts, stacked, width, temperature,
        TOP_K: tl.constexpr, SOME: tl.constexpr, PARTS: tl.constexpr, SCALE: tl.constexpr,
        DEAD: tl.constexpr, UNSCALE: tl.constexpr, PRESENT: tl.constexpr, RANKS: tl.constexpr,
        FACTORS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, TILE_E: tl.constexpr,
        TILE_R: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    scores += token * scores_stride
    inner += token * inner_stride
    mixed += token * width
    lane = tl.arange(0, LANES)
    inside = lane < experts
    s = _score(scores, lane, inside, experts, unscale, PARTS, SCALE, UNSCALE)
    last_rank = tl.max(s, 0)
    last = tl.max(lane, 0)
    place = lane
    taken = inside
    if SOME:
        rank = _rank(s, lane, inside, dead, DEAD)
        taken = lane < 0
        for turn in range(TOP_K):
            last_rank = tl.max(rank, 0)
            last = tl.min(tl.where((rank == last_rank) & inside & (taken == 0), lane, LANES), 0)
            place = tl.where(lane == last, turn, place)
            taken = taken | (lane == last)
            rank = tl.where(lane == last, -float("inf"), rank)
    highest = tl.max(tl.where(taken, s, -float("inf")), 0)
    weights = tl.where(taken, tl.exp((s - highest) / temperature), 0.0)
    total = tl.sum(weights, 0)
    tl.store(chosen + token * TOP_K + place, lane.to(tl.int64), mask=taken)
    tl.store(shares + token * TOP_K + place, weights / total, mask=taken)
    common = total / total
    if PRESENT:
        common = tl.sum(weights * tl.load(present + lane, mask=inside, other=0.0), 0) / total
    if FACTORS:
        r = tl.arange(0, TILE_R)
        mean = tl.zeros([TILE_R], dtype=tl.float32)
        for start in range(0, experts, TILE_E):
            e = start + tl.arange(0, TILE_E)
            c = _coefficient(scores, e, e < experts, experts, unscale, dead, last_rank, last,
                             highest, total, temperature, SOME, PARTS, SCALE, DEAD,
                             UNSCALE)  # fmt: skip
            real = (e < experts)[:, None] & (r < RANKS)[None, :]
            z = tl.load(inner + e[:, None] * RANKS + r[None, :], mask=real, other=0.0)
            mean += tl.sum(tl.where(real, c[:, None] * z.to(tl.float32), 0.0), 0)
        for start in range(0, experts, TILE_E):
            e = start + tl.arange(0, TILE_E)
            c = _coefficient(scores, e, e < experts, experts, unscale, dead, last_rank, last,
                             highest, total, temperature, SOME, PARTS, SCALE, DEAD,
                             UNSCALE)  # fmt: skip
            real = (e < experts)[:, None] & (r < RANKS)[None, :]
            value = c[:, None] * mean[None, :]
            tl.store(mixed + e[:, None] * RANKS + r[None, :], value, mask=real)
    # After the experts' columns come those of the general part.
    for start in range(stacked if FACTORS else 0, width, BLOCK):
        m = start + tl.arange(0, BLOCK)
        own = m < stacked
        e_m = m // RANKS if RANKS > 0 else tl.load(owner + m, mask=own, other=0)
        c_m = _coefficient(scores, e_m, own, experts, unscale, dead, last_rank, last, highest,
                           total, temperature, SOME, PARTS, SCALE, DEAD,
                           UNSCALE)  # fmt: skip
        z_m = tl.load(inner + m, mask=m < width, other=0.0).to(tl.float32)
        tl.store(mixed + m, tl.where(own, c_m, common) * z_m, mask=m < width)


def launch(
    scores_TN: torch.Tensor,
    inner_TM: torch.Tensor,
    owner_M: torch.Tensor | None,
    dead_E: torch.Tensor | None,
    unscale_E: torch.Tensor | None,
    present_E: torch.Tensor | None,
    experts: int,
    stacked: int,
    ranks: int,
    factors: bool,
    parts: int,
    scale: int,
    temperature: float,
    results: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Run the kernel.

    Args:
        scores_TN: (T, P E), the parts of each token's scores next to each other; rows may have any
            stride, like those of `inner_TM`.
        inner_TM: Inner activations of the experts, then of the general part.
        owner_M: (M_e,) int64, the expert of each of the experts' columns; None if every expert has
            `ranks` of them.
        dead_E: Bool, marks experts that are chosen only after all others; None for no such experts.
        unscale_E: Multiplies the sum of the parts; None for ones.
        present_E: The general part is multiplied with its sum over the coefficients; None for 1.
        experts: E.
        stacked: M_e.
        ranks: Rank of every expert; 0 with `owner_M`.
        factors: Whether factors are mixed, not outputs.
        parts: P.
        scale: What is done with the scores: 0 nothing, 1 their magnitudes, 2 their roots.
        temperature: Divides the scores before the softmax; infinity gives equal shares.
        results: The mixed activations, (T, M), the chosen experts, (T, k) int64, and their shares,
            (T, k) float32; written here.
    """
    mixed_TM, chosen_Tk, shares_Tk = results
    tokens, top_k = chosen_Tk.shape
    if not tokens:
        return
    lanes = triton.next_power_of_2(experts)
    tile_r = triton.next_power_of_2(max(1, ranks))
    width = mixed_TM.shape[1]
    optional = (owner_M, dead_E, unscale_E, present_E)
    kernel: Any = mix
    kernel[(tokens,)](
        scores_TN, inner_TM, *(scores_TN if one is None else one for one in optional),
        mixed_TM, chosen_Tk, shares_Tk,
        scores_TN.stride(0), inner_TM.stride(0), experts, stacked, width,
        max(temperature, _TINY),
        TOP_K=top_k, SOME=top_k < experts, PARTS=parts, SCALE=scale,
        DEAD=dead_E is not None, UNSCALE=unscale_E is not None, PRESENT=present_E is not None,
        RANKS=ranks if owner_M is None else 0, FACTORS=factors, LANES=lanes,
        BLOCK=min(_BLOCK, triton.next_power_of_2(width)),
        TILE_E=min(lanes, max(1, _TILE // tile_r)), TILE_R=tile_r,
        num_warps=max(1, min(8, lanes // 128)),
    )  # fmt: skip
