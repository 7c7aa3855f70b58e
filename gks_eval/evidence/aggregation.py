"""How a metric aggregates its items: a mean of scores, or a function of a ratio of sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gks_eval.evidence.records import TaskResult
from gks_eval.evidence.samples import Item
from gks_eval.evidence.stats.streams import Floats

__all__ = ["RatioOfSums", "aggregation_of", "ratio_of_sums"]


@dataclass(frozen=True, slots=True)
class RatioOfSums:
    r"""A metric :math:`g(R)`, :math:`R = \sum_i a_i / \sum_i w_i`, over log-likelihoods a.

    The weights w are an item's words or bytes, or 1.

    Attributes:
        g: The metric of the ratio.
        slope: g's derivative.
    """

    g: Callable[[float], float]
    slope: Callable[[float], float]

    def value(self, amounts: Floats, weights: Floats) -> float:
        """Return g(R)."""
        return self.g(math.fsum(amounts) / math.fsum(weights))

    def per_item(self, amounts: Floats, weights: Floats) -> Floats:
        r"""Return n values with mean g(R) and, by the delta method, the standard error of g(R).

        .. math:: v_i = g(R) + g'(R) \frac{a_i - R w_i}{\bar w}

        These are the residuals of a ratio estimate (Cochran, Sampling Techniques, 1977, chapter 6).
        """
        ratio = math.fsum(amounts) / math.fsum(weights)
        residuals = (amounts - ratio * weights) / (math.fsum(weights) / weights.size)
        return np.asarray(self.g(ratio) + self.slope(ratio) * residuals, dtype=np.float64)


def _perplexity(ratio: float) -> float:
    return math.exp(-ratio) if ratio > -700.0 else math.inf


_PERPLEXITY = RatioOfSums(_perplexity, lambda ratio: -_perplexity(ratio))
_BITS = RatioOfSums(lambda ratio: -ratio / math.log(2.0), lambda _: -1.0 / math.log(2.0))
_RATIOS = {
    "perplexity": _PERPLEXITY,
    "weighted_perplexity": _PERPLEXITY,
    "bits_per_byte": _BITS,
}
# lm-eval's defaults for tasks that list no metrics.
_USUAL = {
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "perplexity": "perplexity",
}


def aggregation_of(task: TaskResult, metric: str) -> str | None:
    """Return lm-eval's name of the aggregation, or None if the results do not record it."""
    entries = task.config.get("metric_list")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("metric") == metric and "aggregation" in entry:
            return str(entry["aggregation"])
    return _USUAL.get(metric)


def ratio_of_sums(
    task: TaskResult, metric: str, items: Sequence[Item]
) -> tuple[RatioOfSums, Floats, Floats] | None:
    """Return a metric's function, amounts (n,) and weights (n,), or None for other metrics."""
    ratio = _RATIOS.get(aggregation_of(task, metric) or "")
    if ratio is None:
        return None
    if all(metric in item.pairs for item in items):
        pairs = [item.pairs[metric] for item in items]
    elif all(metric in item.values for item in items):
        pairs = [(item.values[metric], 1.0) for item in items]
    else:
        return None
    amounts, weights = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return (ratio, amounts, weights) if weights.sum() > 0.0 else None
