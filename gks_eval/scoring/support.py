"""Whether the packed scorer supports a model: by its configuration, then by a trial.

A configuration does not describe all of a model's code, so the first use scores three short
branches of one prefix in three ways: one by one through the model's own forward, as a tree, and as
a tree that continues a shared prefix. If these differ by more than rounding, the model is not
supported.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gks_eval.method.hook import suspended
from gks_eval.scoring.tree import Sequence, build_row, to_sequences
from gks_eval.scoring.tree_model import NotPackable, TreeModel

__all__ = ["supports_packed", "tree_model"]

PREFIX, BRANCH, BRANCHES = 6, 6, 3

# Why a model is not supported, or None, and whether its rows run unpadded.
_tried: WeakKeyDictionary[nn.Module, tuple[str | None, bool]] = WeakKeyDictionary()


def supports_packed(
    model: nn.Module, device: torch.device | str | None = None, max_length: int | None = None
) -> str | None:
    """Return why the packed scorer does not support a model.

    Args:
        model: A causal LM in evaluation mode.
        device: Where its inputs go; by default the device of its first parameter.
        max_length: Maximum number of input tokens; by default `max_position_embeddings`.

    Returns:
        None if it does; else the reason, as the end of a sentence ("it is an encoder-decoder").
    """
    place = torch.device(device) if device is not None else next(model.parameters()).device
    if max_length is None:
        max_length = getattr(getattr(model, "config", None), "max_position_embeddings", 0)
    tree = tree_model(model, place, max_length)
    return tree if isinstance(tree, str) else None


def tree_model(model: nn.Module, device: torch.device, max_length: int) -> TreeModel | str:
    """Return the model prepared for token trees, or the reason why it is not supported.

    The trial runs once per model; adapters on its linear layers do not change its outcome.
    """
    try:
        tree = TreeModel(model, device, max_length)
    except NotPackable as reason:
        return str(reason)
    if model not in _tried:
        with suspended(model):
            why_not = _try(model, tree, max_length)
            if why_not is not None and tree.unpadded:
                # Its own code may be the reason; padded rows need less of it.
                tree.unpadded = False
                why_not = _try(model, tree, max_length)
        _tried[model] = why_not, tree.unpadded
    why_not, tree.unpadded = _tried[model]
    return why_not or tree


def _try(model: nn.Module, tree: TreeModel, max_length: int) -> str | None:
    if max_length < PREFIX + BRANCH:
        return f"it may see only {max_length} tokens"
    sequences = _trial_sequences(tree)
    expected = torch.stack([_one_by_one(model, tree, one) for one in sequences])
    # The bound lies between rounding (with 16-bit weights also of the reference's logits) and a
    # fault, which moves log-probabilities by about their standard deviation.
    relative, absolute = (0.01, 1e-4) if _is_precise(model, tree) else (0.1, 2e-2)
    bound = relative * expected.std().item() + absolute
    for prefix in (0, PREFIX):
        try:
            found = _as_tree(tree, sequences, prefix)
        except Exception as error:  # a model's own code may raise anything
            return f"its transformer refuses a token tree ({type(error).__name__}: {error})"
        off = (found - expected).abs().mean().item()
        if not off <= bound:  # also refuses NaN
            return (
                f"a token tree's log-probabilities are off by {off:.2g} on average, and rounding "
                f"explains only {bound:.2g}"
            )
    return None


def _is_precise(model: nn.Module, tree: TreeModel) -> bool:
    return (
        not getattr(model, "is_quantized", False)
        and not torch.is_autocast_enabled(tree.device.type)
        and all(parameter.dtype == torch.float32 for parameter in tree.base.parameters())
    )


def _trial_sequences(tree: TreeModel) -> list[Sequence]:
    vocabulary = tree.base.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    drawn = torch.randint(
        vocabulary, (PREFIX + BRANCHES * BRANCH,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return to_sequences(
        [
            (drawn[:PREFIX], drawn[PREFIX + BRANCH * i : PREFIX + BRANCH * (i + 1)])
            for i in range(BRANCHES)
        ],
        PREFIX + BRANCH,
    )


def _one_by_one(model: nn.Module, tree: TreeModel, sequence: Sequence) -> torch.Tensor:
    ids = torch.tensor([sequence.tokens[:-1]], device=tree.device)
    with torch.no_grad():
        output: Any = model(input_ids=ids, use_cache=False)
    logits = output.logits[0, sequence.first_scored :].float()
    targets = torch.tensor(sequence.targets, device=logits.device)
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0].cpu()


def _as_tree(tree: TreeModel, sequences: list[Sequence], prefix: int) -> torch.Tensor:
    prefix = min(prefix, min(one.first_scored for one in sequences))
    row = build_row(sequences, prefix)
    long = tree.is_long(sequences[0].length)
    before = tree.prefill(sequences[0].tokens[:prefix], long=long) if prefix else []
    hidden, _ = tree.hidden([row], before, long=long)
    nodes = torch.tensor([node for path in row.scored for node in path])
    tokens = torch.tensor([token for one in sequences for token in one.targets])
    log_probs, _ = tree.head.log_probs(
        hidden[nodes.to(hidden.device)], torch.arange(len(nodes)), tokens
    )
    return log_probs.view(len(sequences), -1)
