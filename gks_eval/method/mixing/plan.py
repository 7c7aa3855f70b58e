"""Which experts one call reads and writes: the plan with the lowest estimated cost.

Scores need a product with every prototype. The rest can be done for all experts, in dense products,
or only for the k chosen experts of each token, in slower products with different rows per token.

A plan's cost on a CPU is a sum over the factors' entries. Its rates are nanoseconds on one core of
an Intel Xeon with AVX-512 and AMX (PyTorch 2.13, 2026-11-28), measured part by part at 1 to 512
tokens, 10 to 1,000 experts of rank 4, 3072->9216, 3072->3072 and 576->576. The row ``experts`` of
the benchmark times all plans and reports how far the chosen one is from the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from gks_eval.method.mixing.chosen import has_sparse_products
from gks_eval.method.mixing.fused import can_fuse
from gks_eval.method.weights import RoutedWeights

__all__ = ["GATHERED", "GATHERED_16", "SPARSE", "Plan", "Rates", "Size", "costs", "plan_of"]

Plan = Literal["all", "write chosen", "chosen", "fused"]
"""``all`` reads and writes all experts, ``write chosen`` reads all, ``chosen`` only scores all.

``fused`` is ``all`` with one kernel between the two products."""

CACHED: Final = 2 << 20
"""Bytes of a factor whose rows stay in a core's cache."""
CALL: Final[dict[Plan, float]] = {"all": 50e3, "write chosen": 90e3, "chosen": 130e3}
"""Nanoseconds per call of all operators together, with a cold cache as inside a model."""
TOKEN: Final[dict[Plan, float]] = {"all": 0.0, "write chosen": 500.0, "chosen": 800.0}
"""Nanoseconds per token of the operators that are not products."""


@dataclass(frozen=True)
class Size:
    """One call: T tokens, `all_rows` of all experts, `rows` of a token's k experts, K and D."""

    tokens: int
    all_rows: int
    rows: int
    width_in: int
    width_out: int


@dataclass(frozen=True)
class Rates:
    """Nanoseconds per entry.

    Attributes:
        loaded: Of a factor in a dense product, once.
        dense: Of a factor in a dense product, for every token.
        read: Of a token's own rows, from a factor in the cache, and from a larger one.
        write: The same for rows that are added to the output.
        itemsize: Bytes per entry.
    """

    loaded: float
    dense: float
    read: tuple[float, float]
    write: tuple[float, float]
    itemsize: int


SPARSE: Final = Rates(0.2, 0.013, (0.09, 0.15), (0.08, 0.15), 4)
"""Sparse products, float32."""
GATHERED: Final = Rates(0.2, 0.013, (1.3, 1.3), (0.3, 0.3), 4)
"""Copies of the chosen rows, float32."""
GATHERED_16: Final = Rates(0.2, 0.0022, (0.95, 0.95), (0.07, 0.16), 2)
"""Copies of the chosen rows, bfloat16."""


def costs(size: Size, rates: Rates) -> dict[Plan, float]:
    """Return every plan's nanoseconds, without the scores, which all plans need."""
    tokens = size.tokens
    own = tokens * size.rows
    read, write = size.all_rows * size.width_in, size.all_rows * size.width_out
    far_read, far_write = (rates.itemsize * entries > CACHED for entries in (read, write))
    per_entry = rates.loaded + rates.dense * tokens
    read_all = read * per_entry
    write_all = write * per_entry + size.all_rows * tokens
    read_own = own * size.width_in * rates.read[far_read]
    write_own = own * size.width_out * rates.write[far_write]
    work: dict[Plan, float] = {
        "all": read_all + write_all,
        "write chosen": read_all + write_own,
        "chosen": read_own + write_own,
    }
    return {plan: CALL[plan] + TOKEN[plan] * tokens + work[plan] for plan in work}


def plan_of(tokens: int, weights: RoutedWeights) -> Plan:
    """Return the plan for a number of tokens at one layer, without gradients."""
    plan: Any = weights.plans.get(tokens)
    if plan is None:
        plan = weights.plans[tokens] = _plan_of(tokens, weights)
    found: Plan = plan
    return found


def _plan_of(tokens: int, weights: RoutedWeights) -> Plan:
    if can_fuse(weights):
        return "fused"
    router = weights.sparse
    if router is None or not tokens:
        return "all"
    rates = _rates_of(weights)
    if rates is None:
        return "all"
    rows = router.top_k * weights.rows.of_expert.shape[1]
    width_in, width_out = weights.read.shape[1], weights.write.shape[1]
    size = Size(tokens, weights.stacked, rows, width_in, width_out)
    found = costs(size, rates)
    if router.reads_inner:
        del found["chosen"]
    return min(found, key=lambda plan: found[plan])


def _rates_of(weights: RoutedWeights) -> Rates | None:
    """Return the rates of a layer's device and type; None where only dense products were timed."""
    device, dtype = weights.read.device, weights.read.dtype
    if device.type != "cpu":
        return None
    if dtype.itemsize < 4:
        return GATHERED_16
    return SPARSE if has_sparse_products(device, dtype) else GATHERED
