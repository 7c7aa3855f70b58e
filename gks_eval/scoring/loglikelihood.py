"""The result of one request: lm-eval's pair, with the numbers of scored and of non-zero tokens."""

from __future__ import annotations

import math
from typing import Any, Final

from gks_eval.errors import ResultsError

__all__ = ["NOTHING_SCORED", "TokenLogLikelihood"]


class TokenLogLikelihood(tuple[float, bool]):
    """A (log-likelihood, is greedy) pair that carries token counts.

    lm-eval's tasks unpack exactly two items from a result, so the counts are attributes. Pickling
    into lm-eval's request cache keeps them.

    Attributes:
        tokens: Number of tokens whose log-likelihoods were summed.
        nonzero: Number of these whose log-likelihood is not exactly 0 in float32. The authors'
            code divides a text's loss by it.
    """

    tokens: int
    nonzero: int

    def __new__(
        cls, log_likelihood: float, is_greedy: bool, tokens: int, nonzero: int | None = None
    ) -> TokenLogLikelihood:
        """Make the pair.

        Args:
            log_likelihood: Sum over the scored tokens, natural logarithm.
            is_greedy: Whether every scored token was the argmax.
            tokens: Number of scored tokens.
            nonzero: Number of those with a log-likelihood other than 0; by default all.

        Raises:
            ResultsError: The log-likelihood is NaN, which lm-eval would take for the best choice.
        """
        if math.isnan(log_likelihood):
            raise ResultsError(
                "the model gave NaN as a log-likelihood; load it in a wider dtype (dtype=bfloat16 "
                "or dtype=float32), or give the setting smaller values."
            )
        pair = super().__new__(cls, (float(log_likelihood), bool(is_greedy)))
        pair.tokens = int(tokens)
        pair.nonzero = pair.tokens if nonzero is None else int(nonzero)
        return pair

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self[0], self[1], self.tokens, self.nonzero)


NOTHING_SCORED: Final = TokenLogLikelihood(-math.inf, False, 0)
"""The result of a continuation without tokens: any other choice is better.

The sum over no tokens is 0, which would make an empty option the best of its item.
"""
