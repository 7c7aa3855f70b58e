"""Accuracies of a multiple-choice item: the same log-likelihoods, divided by different lengths.

==================  =======================================================================
``acc``             the choice of highest log-likelihood
``acc_norm``        ... of highest log-likelihood a character of the choice
``acc_bytes``       ... of highest log-likelihood a UTF-8 byte of the choice
``acc_token_norm``  ... of highest mean token log-likelihood of the continuation
==================  =======================================================================

The first three are lm-eval's; the lengths are those of the choice without the delimiter before it.
``acc_token_norm`` needs the number of scored tokens, which only results of this package's model
class carry (`gks_eval.scoring.loglikelihood.TokenLogLikelihood`). A tie goes to the first choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gks_eval.errors import ResultsError

__all__ = ["best_choice", "choice_metrics", "token_counts"]


def token_counts(results: Sequence[object], of: str = "tokens") -> list[int] | None:
    """Return the number of scored tokens of each result, or None unless every result has one.

    Args:
        results: Of the choices.
        of: ``tokens``, or ``nonzero`` for the tokens whose log-likelihood is not exactly 0.
    """
    counts = [getattr(result, of, None) for result in results]
    known = [count for count in counts if count is not None]
    return known if len(known) == len(counts) else None


def best_choice(log_likelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    r"""Return :math:`\arg\max_i \ell_i / n_i`, the first one on a tie.

    Args:
        log_likelihoods: Of the choices, natural logarithm.
        lengths: What to divide each by; 1 when None. A choice of length 0 is never chosen
            before one that has a length.

    Raises:
        ResultsError: When a log-likelihood is NaN: there is no best choice then.
    """
    best, best_score = 0, -math.inf
    for i, log_likelihood in enumerate(log_likelihoods):
        if math.isnan(log_likelihood):
            raise ResultsError(
                f"the model gave NaN as the log-likelihood of choice {i}; load it in a wider dtype "
                "(dtype=bfloat16 or dtype=float32)."
            )
        length = 1 if lengths is None else lengths[i]
        score = log_likelihood / length if length else -math.inf
        if score > best_score:
            best, best_score = i, score
    return best


def choice_metrics(
    texts: Sequence[str], gold: int, results: Sequence[tuple[float, bool]]
) -> dict[str, float]:
    """Score one item.

    Args:
        texts: The texts whose lengths normalise: the choices, or the scored continuations where
            the choices stand in the context.
        gold: Position of the right answer.
        results: (log-likelihood, is greedy) of each choice, perhaps with ``.tokens``.

    Returns:
        1.0 or 0.0 by metric; ``acc_token_norm`` is left out when a token count is missing.
    """
    log_likelihoods = [float(result[0]) for result in results]
    lengths: dict[str, list[int] | None] = {
        "acc": None,
        "acc_norm": [len(text) for text in texts],
        "acc_bytes": [len(text.encode("utf-8")) for text in texts],
    }
    if (tokens := token_counts(results)) is not None:
        lengths["acc_token_norm"] = tokens
    return {name: float(best_choice(log_likelihoods, by) == gold) for name, by in lengths.items()}
