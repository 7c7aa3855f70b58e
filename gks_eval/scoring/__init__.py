"""Log-likelihoods of many requests on one model, each distinct token prefix computed once per row.

- `packed`: the scorer
- `support`: whether the packed scorer supports a model
- `tree_model`: a model's transformer and head, called on token trees
- `together`: dividing requests among processes
- `unpadded`: rows without padding, on a CPU
- `masks`, `head`, `batch_sizes`: the attention mask, the vocabulary head, sizes of rows and batches
"""

from __future__ import annotations

from gks_eval.scoring.batch_sizes import requests_worth
from gks_eval.scoring.packed import PackedCounts, packed_log_likelihoods
from gks_eval.scoring.support import supports_packed
from gks_eval.scoring.together import score_together

__all__ = [
    "PackedCounts",
    "packed_log_likelihoods",
    "requests_worth",
    "score_together",
    "supports_packed",
]
