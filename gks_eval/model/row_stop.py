"""Stop strings of generation, per row of a batch."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import PreTrainedTokenizerBase, StoppingCriteria

__all__ = ["RowStop"]


class RowStop(StoppingCriteria):
    """Ends each row at its first stop string, as lm-eval ends a batch of one row.

    lm-eval's criteria end a batch once all its rows have produced the same stop string. Rows that
    produce different ones run to the maximum length.

    Args:
        tokenizer: Decodes what was generated.
        stop: The stop strings.
        context: The tokens before generation, with shape (rows, tokens).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: list[str], context: torch.Tensor
    ) -> None:
        rows, length = context.shape
        self._criteria = stop_sequences_criteria(tokenizer, stop, length, rows)
        self._done = torch.zeros(rows, dtype=torch.bool)

    def __call__(self, input_ids: Any, scores: Any, **how: Any) -> torch.BoolTensor:
        """Return for each row whether it has ended."""
        for criterion in self._criteria:
            criterion(input_ids, scores, **how)
            self._done |= torch.tensor(criterion.done_tracker)
        return self._done.to(input_ids.device)  # type: ignore[return-value]
