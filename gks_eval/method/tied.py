"""Layers that share one prototype per expert, and the update that it is taken of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gks_eval.method.declaration import TieOp
from gks_eval.method.lora import LoraPair, stack

__all__ = ["Tied", "joined"]


@dataclass(frozen=True)
class Tied:
    """The layers that share a prototype with the one that is built, this one included.

    Attributes:
        name: Of the group.
        op: What the prototype is made of.
        layers: Per layer its name, the pairs that are mixed, one per expert, and the pairs that are
            subtracted from them.
    """

    name: str
    op: TieOp
    layers: Sequence[tuple[str, Sequence[LoraPair], Sequence[LoraPair]]]


def joined(op: TieOp, pairs: Sequence[LoraPair]) -> LoraPair:
    """Return one pair for the updates of one expert at several layers, scaling 1.

    ``concat`` gives ``[dW_1; dW_2; ...]``, (D_1 + D_2 + ..., K), as for one layer with the outputs
    of all; ``sum`` gives ``dW_1 + dW_2 + ...``. If the layers share A, the rank is that of one
    layer, else the sum of the ranks: ``B = diag(s_1 B_1, s_2 B_2, ...)``, ``A = [A_1; A_2; ...]``.
    """
    present = [pair for pair in pairs if not pair.missing]
    if not present:
        return pairs[0]
    shared = all(torch.equal(pair.A, present[0].A) for pair in present)
    if op == "sum":
        if not shared:
            return stack(present, [1.0] * len(present))
        return LoraPair(
            present[0].A, torch.stack([pair.scaling * pair.B for pair in present]).sum(0)
        )
    written = [pair.scaling * pair.B for pair in present]
    if shared:
        return LoraPair(present[0].A, torch.cat(written))
    diagonal: torch.Tensor = torch.block_diag(*written)  # type: ignore[no-untyped-call]
    return LoraPair(torch.cat([pair.A for pair in present]), diagonal)
