"""Held-out loss: the mean over scored tokens of -log p, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gks_eval.training.examples import Example

if TYPE_CHECKING:
    import torch

__all__ = ["mean_loss"]


def mean_loss(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """Return the mean negative log-likelihood a scored token.

    ``L = - sum_i sum_t log p(x_it | x_i,<t) / n`` over the n positions whose label is scored.

    Args:
        model: A causal language model; its mode and gradients are left as they were.
        examples: Rows of one or more tokens.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.inference_mode():
            for example in examples:
                ids_1T = torch.tensor([example.input_ids], device=device)
                labels_T = torch.tensor(example.labels[1:], device=device)
                logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1]
                kept = labels_T != -100
                losses = torch.nn.functional.cross_entropy(
                    logits_TV[kept].float(), labels_T[kept], reduction="sum"
                )
                total += float(losses)
                count += int(kept.sum())
    finally:
        model.train(was_training)
    return total / max(count, 1)
