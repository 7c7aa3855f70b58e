"""Which experts one call reads and writes.

Scores need a product with every prototype. The rest can be done for all experts, in dense products,
or only for the k that each token chose, in slower products with rows that differ by token.
"""

from __future__ import annotations

from typing import Literal

from gks_eval.method.mixing.chosen import has_sparse_products
from gks_eval.method.mixing.fused import can_fuse
from gks_eval.method.weights import RoutedWeights

__all__ = ["Plan", "plan_of"]

Plan = Literal["all", "chosen", "write chosen", "fused"]
"""``all`` reads and writes all experts, ``write chosen`` reads all, ``chosen`` only scores all.

``fused`` is ``all`` with one kernel between the two products."""

FEW = 64
"""Experts that are all written."""


def plan_of(tokens: int, weights: RoutedWeights) -> Plan:
    """Return the plan for so many tokens at one layer, without gradients."""
    if can_fuse(weights):
        return "fused"
    router, read = weights.sparse, weights.read
    if router is None or not tokens or weights.experts < FEW or read.device.type != "cpu":
        return "all"
    if router.reads_inner or not has_sparse_products(read.device, read.dtype):
        return "write chosen"
    return "chosen"
