"""Routing accuracy: how often text goes to the expert that was trained on its kind of text.

A token goes to the expert with the largest coefficient. Where m experts share the largest one, each
of them gets 1/m of the token, so that `uniform` is right by chance, 1/E. A sequence goes to the
expert with most of its tokens, with ties divided in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gks_eval.errors import UsageError
from gks_eval.method.setting import Setting

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["SettingAccuracy", "divided_argmax", "observe_accuracy"]

_TIE = 1e-9  # sums of thirds differ in their last bits


@dataclass(frozen=True)
class SettingAccuracy:
    """Where one setting sends the sequences of each expert.

    All shares are means over the experts' texts, each expert counted once, however much text it
    has: a router that always picks the same expert has an accuracy of 1/E.

    Attributes:
        layers: Names of the routed layers, L.
        tokens: (L,) share of tokens that go to their own expert.
        sequences: (L,) share of sequences that go to their own expert by majority of tokens.
        all_tokens: Mean of `tokens`.
        all_sequences: Share of sequences by majority over the tokens of all layers.
        confusion: (E, E) share of tokens, mean over layers: row for the text's expert, column for
            the expert that the tokens go to.
    """

    layers: list[str]
    tokens: list[float]
    sequences: list[float]
    all_tokens: float
    all_sequences: float
    confusion: list[list[float]]


def divided_argmax(scores: torch.Tensor) -> torch.Tensor:
    """Return 1 for the largest score of each row (last dimension), or 1/m for each of m equals."""
    most = scores.amax(-1, keepdim=True)
    found = (scores >= most - _TIE).double()
    return found / found.sum(-1, keepdim=True)


def observe_accuracy(
    lm: GksArrowLM,
    setting: Setting,
    rows: Mapping[str, Sequence[Sequence[int]]],
    advance: Callable[[], object] = lambda: None,
) -> SettingAccuracy:
    """Route every expert's rows under a setting, and count where their tokens go.

    Args:
        lm: A model with a library; it keeps the setting.
        setting: Routes among all experts of the library.
        rows: Token ids of one or more sequences per expert, for all experts; what exceeds the
            model's length is cut off at the end.
        advance: Called after each sequence.

    Raises:
        UsageError: The setting does not route among the library's experts, or an expert has no
            rows.
    """
    lm.apply(setting)
    library, attachment = lm.library, lm.attachment
    experts = list(library.mixed_adapters(lm.setting)) if library and attachment else []
    if len(experts) < 2 or attachment is None:
        raise UsageError("this setting does not choose among experts; name a router, as in arrow.")
    if missing := [name for name in experts if not rows.get(name)]:
        raise UsageError(f"there is no text of expert {missing[0]}; give rows for all experts.")
    votes: dict[str, torch.Tensor] = {}

    def count(layer: str, c_TE: torch.Tensor) -> None:
        top = c_TE == c_TE.amax(-1, keepdim=True)
        votes[layer] = (top / top.sum(-1, keepdim=True)).sum(0, dtype=torch.float64)

    layers = [name for name, update in attachment.layers.items() if update.weights is not None]
    shares, by_layer, overall = [], [], []
    attachment.observe(count)
    try:
        for own, name in enumerate(experts):
            sums = torch.zeros(len(layers), len(experts), dtype=torch.float64)
            right = torch.zeros(len(layers), dtype=torch.float64)
            right_overall = 0.0
            for row in rows[name]:
                ids = torch.tensor([row[: lm.max_length]], device=lm.device)
                with torch.inference_mode():
                    lm.model(input_ids=ids, use_cache=False)
                votes_LE = torch.stack([votes[layer].cpu() for layer in layers])
                sums += votes_LE
                right += divided_argmax(votes_LE)[:, own]
                right_overall += float(divided_argmax(votes_LE.sum(0))[own])
                advance()
            shares.append(sums / sums.sum(-1, keepdim=True))
            by_layer.append(right / len(rows[name]))
            overall.append(right_overall / len(rows[name]))
    finally:
        attachment.observe(None)
    share_CLE = torch.stack(shares)
    tokens_L = share_CLE.diagonal(dim1=0, dim2=2).mean(-1)
    return SettingAccuracy(
        layers=layers,
        tokens=tokens_L.tolist(),
        sequences=torch.stack(by_layer).mean(0).tolist(),
        all_tokens=float(tokens_L.mean()),
        all_sequences=sum(overall) / len(overall),
        confusion=share_CLE.mean(1).tolist(),
    )
