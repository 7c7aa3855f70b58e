"""Float32 directions as sums of 16-bit matrices, for devices that multiply 16 bits into float32.

A router's scores must be as accurate as with float32 directions, but tensor cores multiply 16-bit
matrices. They compute each product of two 16-bit numbers exactly and add in float32. Each direction
is therefore a sum of 16-bit parts, ``p = p_1 + p_2 + p_3``, and ``x . p`` is the sum of three
products. The parts are rows of the matrix that also gives the inner activations.

- bfloat16 has 8 significant bits: three parts hold the 24 of a float32, and two hold 16.
- float16 has 11 significant bits but a small range: each direction is multiplied by a power of two
  first, so that its largest entry is near 2^14. Two parts are then off by at most 2^-23 of an
  entry, the last bit of a float32, or 2^-39 of the largest entry.
"""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["PARTS", "accumulates_wide", "joined_rows", "joined_scores", "split", "wide_mm"]

PARTS: Final = {torch.bfloat16: 3, torch.float16: 2}
"""Parts per direction: as many as float32's 24 bits need."""

_LARGEST: Final = 14
"""The binary exponent of a scaled direction's largest entry; float16 ends below 2^16."""


def split(
    directions_NK: torch.Tensor, dtype: torch.dtype, parts: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split directions.

    Args:
        directions_NK: Float32.
        dtype: ``bfloat16`` or ``float16``.
        parts: P, the number of parts; default `PARTS`.

    Returns:
        (P N, K) of `dtype`, the smallest part of all directions first, the largest last; and (N,)
        float32, the powers of two that multiply their scores, or None for ones.
    """
    unscale = None
    rest = directions_NK.float()
    if dtype == torch.float16:
        largest = rest.abs().amax(dim=1, keepdim=True)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1 - _LARGEST, 0)
        rest = torch.ldexp(rest, -exponent)
        unscale = torch.ldexp(torch.ones_like(largest), exponent)[:, 0]
    rows: list[torch.Tensor] = []
    for _ in range(PARTS[dtype] if parts is None else parts):
        rows.append(rest.to(dtype))
        rest = rest - rows[-1].float()  # exact, as the part has the leading bits
    return torch.cat(rows[::-1]), unscale


def joined_scores(
    products_TPN: torch.Tensor, parts: int, unscale_N: torch.Tensor | None
) -> torch.Tensor:
    """Return the scores, (T, N), from the float32 products with all parts, (T, P N)."""
    tokens, rows = products_TPN.shape
    scores_TN = products_TPN.view(tokens, parts, rows // parts).sum(1)
    return scores_TN if unscale_N is None else scores_TN * unscale_N


def joined_rows(rows_PNK: torch.Tensor, parts: int, unscale_N: torch.Tensor | None) -> torch.Tensor:
    """Return the sums of the parts, (N, K) float32: the directions up to the error of `split`."""
    return joined_scores(rows_PNK.float().T, parts, unscale_N).T.contiguous()


def accumulates_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the device multiplies matrices of `dtype` into float32."""
    return (
        device.type == "cuda"
        and dtype in PARTS
        and torch.version.hip is None
        and hasattr(torch.ops.aten.mm, "dtype")
    )


def wide_mm(x_TK: torch.Tensor, rows_NK: torch.Tensor) -> torch.Tensor:
    """Return ``x @ rows^T`` in float32, (T, N), where `accumulates_wide`."""
    return torch.mm(x_TK, rows_NK.T, out_dtype=torch.float32)
