"""Rows that training held out, and the loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gks_eval.errors import DataError
from gks_eval.training.examples import Example
from gks_eval.training.job_data import load_job_data
from gks_eval.training.jobs import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_held_out", "held_out_rows", "mean_loss"]


def held_out_rows(
    plan: TrainingPlan,
    experts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
) -> dict[str, list[tuple[int, ...]]]:
    """Return the token ids of the rows that training held out, prompt and answer, by expert.

    Args:
        plan: The recipe's jobs.
        experts: Names of the experts.
        tokenizer: Of the base model.
        limit: Maximum number of rows per expert.

    Raises:
        DataError: The recipe lacks an expert or holds no rows out, or its data have a fault.
        HubError: The hub cannot be reached.
    """
    check_held_out(plan, experts)
    jobs = {job.name: job for job in plan.jobs if job.kind == "experts"}
    return {
        name: [
            example.input_ids
            for example in load_job_data(jobs[name], plan.root, tokenizer).held_out[:limit]
        ]
        for name in experts
    }


def check_held_out(plan: TrainingPlan, experts: Sequence[str]) -> None:
    """Refuse a recipe without held-out rows of all experts; no row is read.

    Raises:
        DataError: The recipe lacks an expert or holds no rows out.
    """
    jobs = {job.name: job for job in plan.jobs if job.kind == "experts"}
    if missing := [name for name in experts if name not in jobs]:
        raise DataError(
            f"the recipe in {plan.root} has no expert {missing[0]!r}; give the recipe that the "
            "library was trained from."
        )
    if not all(jobs[name].section.held_out for name in experts):
        raise DataError(
            f"the recipe in {plan.root} holds no rows out; set `held_out` in its experts."
        )


def mean_loss(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """Return the mean negative log-likelihood per scored token.

    ``L = - sum_i sum_t log p(x_it | x_i,<t) / n`` over the n positions whose label is scored.

    Args:
        model: A causal language model; its mode and gradients do not change.
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
