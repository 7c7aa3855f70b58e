"""Log-likelihoods of many requests on one model, each distinct token prefix computed once a row.

- `run`: the scorer
- `support`: whether a model can be scored this way, and how that is found out
- `model`: a model's transformer and head, called on token trees
- `together`: several processes, each with a share
- `abreast`: rows without padding, on a CPU
- `masks`, `head`, `sizes`: the attention mask, the vocabulary head, how much fits
"""

from __future__ import annotations

from gks_eval.scoring.run import PackedCounts, packed_log_likelihoods
from gks_eval.scoring.sizes import requests_worth
from gks_eval.scoring.support import supports_packed
from gks_eval.scoring.together import score_together

__all__ = [
    "PackedCounts",
    "packed_log_likelihoods",
    "requests_worth",
    "score_together",
    "supports_packed",
]
