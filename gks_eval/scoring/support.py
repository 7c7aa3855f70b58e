"""Whether a model can be scored packed: by what it says of itself, then by trying it.

A configuration cannot tell everything about a model's code, so the first use scores three short
branches of one prefix three ways: one by one through the model's own forward, as a tree, and as a
tree that continues a trunk. Where these differ by more than rounding does, packed is refused.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gks_eval.scoring.tree import Sequence, build_row, to_sequences
from gks_eval.scoring.tree_model import NotPackable, TreeModel

__all__ = ["supports_packed", "tree_model"]

PREFIX, BRANCH, BRANCHES = 6, 6, 3

# Why a model is not packed, if so, and whether its rows may lie abreast.
_tried: WeakKeyDictionary[nn.Module, tuple[str | None, bool]] = WeakKeyDictionary()


def supports_packed(
    model: nn.Module, device: torch.device | str | None = None, max_length: int | None = None
) -> str | None:
    """Say why a model cannot be scored packed.

    Args:
        model: A causal LM in evaluation mode.
        device: Where its inputs go; where its first parameter is if None.
        max_length: The most tokens that it will see; `max_position_embeddings` if None.

    Returns:
        None if it can; else the reason, as the end of a sentence ("it is an encoder-decoder").
    """
    place = torch.device(device) if device is not None else next(model.parameters()).device
    if max_length is None:
        max_length = getattr(getattr(model, "config", None), "max_position_embeddings", 0)
    tree = tree_model(model, place, max_length)
    return tree if isinstance(tree, str) else None


def tree_model(model: nn.Module, device: torch.device, max_length: int) -> TreeModel | str:
    """Return the model made ready for token trees, or the reason why it cannot be.

    The trial runs once a model; what is attached to its linear layers does not matter to it.
    """
    try:
        tree = TreeModel(model, device, max_length)
    except NotPackable as reason:
        return str(reason)
    if model not in _tried:
        why_not = _try(model, tree, max_length)
        if why_not is not None and tree.abreast:
            # Its own code may lie behind that; padded rows ask less of it.
            tree.abreast = False
            why_not = _try(model, tree, max_length)
        _tried[model] = why_not, tree.abreast
    why_not, tree.abreast = _tried[model]
    return why_not or tree


def _try(model: nn.Module, tree: TreeModel, max_length: int) -> str | None:
    if max_length < PREFIX + BRANCH:
        return f"it may see only {max_length} tokens"
    sequences = _trial_sequences(tree)
    expected = torch.stack([_one_by_one(model, tree, one) for one in sequences])
    # Rounding (in 16 bits of the reference's logits, too) against what a fault would do: tokens'
    # log-probabilities move by about as much as they differ from each other.
    relative, absolute = (0.01, 1e-4) if _is_precise(model, tree) else (0.1, 2e-2)
    bound = relative * expected.std().item() + absolute
    for trunk in (0, PREFIX):
        try:
            found = _as_tree(tree, sequences, trunk)
        except Exception as error:  # whatever a model's own code raises
            return f"its transformer refuses a token tree ({type(error).__name__}: {error})"
        off = (found - expected).abs().mean().item()
        if not off <= bound:  # NaN is off, too
            return (
                f"a token tree's log-probabilities are off by {off:.2g} on average, where rounding"
                f" explains {bound:.2g}"
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


def _as_tree(tree: TreeModel, sequences: list[Sequence], trunk: int) -> torch.Tensor:
    trunk = min(trunk, min(one.first_scored for one in sequences))
    row = build_row(sequences, trunk)
    long = tree.is_long(sequences[0].length)
    before = tree.prefill(sequences[0].tokens[:trunk], long=long) if trunk else []
    hidden, _ = tree.hidden([row], before, long=long)
    nodes = torch.tensor([node for path in row.scored for node in path])
    tokens = torch.tensor([token for one in sequences for token in one.targets])
    log_probs, _ = tree.head.log_probs(
        hidden[nodes.to(hidden.device)], torch.arange(len(nodes)), tokens
    )
    return log_probs.view(len(sequences), -1)
