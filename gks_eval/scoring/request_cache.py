"""A guard for lm-eval's request cache (``--use_cache``), against mixing scores of two settings.

The key of an entry is the request's text alone. A stamp inside the file names the model and setting
that filled it; a run with another stamp is refused.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import UsageError
from gks_eval.scoring.loglikelihood import TokenLogLikelihood

if TYPE_CHECKING:
    import torch

__all__ = ["CACHE_AND_ITEMS", "STAMP_KEY", "CountingHook", "stamp"]

STAMP_KEY: Final = "gks_eval:identity"
CACHE_AND_ITEMS: Final = (
    "--cache_requests keeps the prompts of a task under its name alone, so with --limit or "
    "--samples lm-eval would score the prompts of other items; leave --cache_requests out."
)
"""The sentence for two flags of lm-eval that give wrong scores together."""


def stamp(database: MutableMapping[str, Any], identity: str) -> None:
    """Mark an empty cache with `identity`, or check the mark of a filled one.

    Args:
        database: lm-eval's open cache (a SqliteDict).
        identity: Digest of everything that determines this run's scores.

    Raises:
        UsageError: The cache was filled by another model or setting, or by one that left no stamp.
    """
    found = database.get(STAMP_KEY)
    if found is None and len(database) == 0:
        database[STAMP_KEY] = identity
    elif found != identity:
        filled_by = "another model or setting" if found else "a model that leaves no stamp"
        raise UsageError(
            f"the request cache {getattr(database, 'filename', '(--use_cache)')} was filled by "
            f"{filled_by}; give every setting its own --use_cache file, or delete this one."
        )


class CountingHook:
    """Adds token counts to the log-likelihoods of lm-eval's scorer and passes them to its cache.

    Without it, a run resumed from the cache would lack the counts of cached items. lm-eval's scorer
    reports each result right after it took the log-probabilities of the result's tokens, which is
    where the non-zero ones are counted.

    Attributes:
        log_probs: (S, V), the log-probabilities at the scored positions of the current request.
    """

    log_probs: torch.Tensor | None = None

    def __init__(self, hook: Any, requests: Sequence[tuple[Any, Sequence[int]]]) -> None:
        """Wrap `hook`; `requests` pairs each request's arguments with its scored tokens."""
        self._hook = hook
        self._tokens = {_key(key): tokens for key, tokens in requests if key is not None}
        self._counted: dict[str, TokenLogLikelihood] = {}

    def add_partial(self, kind: str, request: tuple[Any, ...], result: Any) -> None:
        """Pass one result on to the cache."""
        tokens = self._tokens[_key(request)]
        log_likelihood, is_greedy = result
        counted = TokenLogLikelihood(log_likelihood, is_greedy, len(tokens), self._nonzero(tokens))
        self._counted[_key(request)] = counted
        self._hook.add_partial(kind, request, counted)

    def counted(
        self, key: Any, tokens: Sequence[int], result: tuple[float, bool]
    ) -> TokenLogLikelihood:
        """Return the result of a request with its counts; without a key it is not in the cache."""
        if key is not None and (found := self._counted.get(_key(key))) is not None:
            return found
        return TokenLogLikelihood(result[0], result[1], len(tokens))

    def _nonzero(self, tokens: Sequence[int]) -> int | None:
        if self.log_probs is None:
            return None
        rows = self.log_probs[-len(tokens) :]
        return int(rows[range(len(rows)), list(tokens)].count_nonzero())


def _key(request: tuple[Any, ...]) -> str:
    return json.dumps(request)  # arguments may contain a dict, which is not hashable
