"""The routed update of one linear layer.

With ``z = x [A_1; ...; A_E]^T`` and the coefficients c of a router, for every token:

- ``outputs`` (PEFT): ``y = sum_e c_e s_e B_e A_e x``, that is ``[c_1 z_1 | ...] @ [s_e B_e]^T``.
- ``factors`` (the authors, MTTL): ``y = s (sum_e c_e B_e)(sum_e c_e A_e) x``, that is
  ``[c_1 zbar | ...] @ [s B_e]^T`` with ``zbar = sum_e c_e z_e``.

If the coefficients sum to 1 and the rule is linear in the updates, the general part costs one
extra adapter instead of one per expert: ``sum_e c_e (dW_e - dW_g) = (sum_e c_e dW_e) - dW_g``.
Nothing is subtracted from an expert that does not update the layer, so dW_g is then multiplied by
the sum of the other experts' coefficients.

All experts are read and written in two matrix products, or with many experts on a CPU only the
chosen ones, see `gks_eval.method.mixing.plan`. Nothing of size tokens x experts x D is allocated.
`gks_eval.method.reference` computes the same in plain loops.
"""

from __future__ import annotations

import torch

from gks_eval.method.choice import Choice
from gks_eval.method.contexts import Contexts
from gks_eval.method.declaration import Tokens
from gks_eval.method.mixing.chosen import (
    add_chosen,
    mixed_sparsely,
    read_chosen,
    rows_of_choice,
)
from gks_eval.method.mixing.dense import mixed_densely
from gks_eval.method.mixing.fused import mixed_by_kernel
from gks_eval.method.mixing.plan import Plan, plan_of
from gks_eval.method.mixing.products import read_all, read_scores
from gks_eval.method.weights import RoutedWeights

__all__ = ["add_update", "routed_update"]


def routed_update(
    x_TK: torch.Tensor,
    weights: RoutedWeights,
    into: torch.Tensor | None = None,
    contexts: Contexts | None = None,
    name: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the routed update of each token, (T, D), and its coefficients, (T, E) or (1, E).

    Args:
        x_TK: The layer's input, in the type of ``weights.read``.
        weights: What `gks_eval.method.build.build` prepared.
        into: (T, D) of the same type, to which the update is added in place; it is returned
            instead of the update. Only without gradients.
        contexts: Which context each token belongs to, for one choice per context; None for one
            choice per token.
        name: The layer's name, under which `contexts` holds its choices.
    """
    update_TD, found = add_update(x_TK, weights, into, contexts, name)
    return update_TD, found.dense(weights.experts) if isinstance(found, Choice) else found


def add_update(
    x_TK: torch.Tensor,
    weights: RoutedWeights,
    into: torch.Tensor | None = None,
    contexts: Contexts | None = None,
    name: str = "",
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor | Choice]:
    """Return the same update, and the coefficients as the plan has them.

    Args:
        x_TK: As for `routed_update`.
        weights: As there.
        into: As there.
        contexts: As there.
        name: As there.
        plan: Which experts are read and written; None for the plan with the lowest estimated cost.
    """
    if plan is None:
        # A compiled model is traced once for many lengths, and sparse products are not compiled.
        dense = torch.is_grad_enabled() or torch.compiler.is_compiling()
        plan = "all" if dense else plan_of(x_TK.shape[0], weights)
    if plan == "fused":
        mixed_TM, choice = mixed_by_kernel(x_TK, weights)
        if into is not None:
            return into.addmm_(mixed_TM, weights.write), choice
        return mixed_TM @ weights.write, choice
    if plan == "all":
        tokens = read_all(x_TK, weights)
        c_TE = _coefficients(tokens, weights, contexts, name)
        mixed_TM = mixed_densely(c_TE, tokens.inner, weights)
        if into is not None:
            return into.addmm_(mixed_TM, weights.write), c_TE
        return mixed_TM @ weights.write, c_TE
    tokens = read_scores(x_TK, weights) if plan == "chosen" else read_all(x_TK, weights)
    general = weights.write.shape[0] - weights.stacked
    once_TM = tokens.inner[:, tokens.inner.shape[1] - general :]
    once_TM = once_TM.to(weights.write.dtype)
    choice = _choice(tokens, weights, contexts, name)
    rows_TS = rows_of_choice(choice, weights)
    if plan == "chosen":
        z_TS = read_chosen(x_TK, rows_TS, weights)
    else:
        z_TS = tokens.inner.gather(1, rows_TS).to(weights.write.dtype)
    if into is None:
        into = x_TK.new_zeros(len(x_TK), weights.write.shape[1])
    if general:
        if weights.present is not None:
            counted_T1 = (choice.shares * weights.present[choice.experts]).sum(1, keepdim=True)
            once_TM = (counted_T1 * once_TM).to(once_TM.dtype)
        into.addmm_(once_TM, weights.write[weights.stacked :])
    return add_chosen(into, rows_TS, mixed_sparsely(choice, z_TS, weights), weights), choice


def _coefficients(
    tokens: Tokens, weights: RoutedWeights, contexts: Contexts | None, name: str
) -> torch.Tensor:
    if contexts is None:
        return weights.router.coefficients(tokens)
    return contexts.coefficients(name, weights.router, tokens)


def _choice(tokens: Tokens, weights: RoutedWeights, contexts: Contexts | None, name: str) -> Choice:
    router = weights.sparse
    assert router is not None
    if contexts is None:
        return router.choice(tokens)
    return Choice.of(contexts.coefficients(name, router, tokens), router.top_k)
