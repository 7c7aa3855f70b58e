"""Routing statistics: shares, mean coefficients and entropies per layer, expert and task.

An observer on the routed layers collects them in the forward; without one a forward does nothing
extra. Every distinct token prefix of an item counts once, even if several choices share it, and
padding does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from gks_eval.errors import UsageError
from gks_eval.scoring import packed_log_likelihoods, supports_packed
from gks_eval.util.schemas import ROUTING
from gks_eval.util.versions import versions

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["RoutingTally", "observe_requests", "observe_text", "routing_record"]

_GATHER: Final = 1024  # tokens of a layer
TokenPairs = Sequence[tuple[list[int], list[int]]]


@dataclass
class RoutingTally:
    """Running sums over tokens, per layer; an observer for `Attachment.observe`.

    The coefficients of short forwards are collected and summed together, because separate sums
    would slow the forward by more than a few percent.

    Attributes:
        tokens: Tokens seen.
        chosen: (E,) number of tokens with a coefficient above zero, per expert.
        coefficients: (E,) sum of coefficients.
        entropy: Sum of the tokens' entropies, in nats.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, torch.Tensor] = field(default_factory=dict)
    coefficients: dict[str, torch.Tensor] = field(default_factory=dict)
    entropy: dict[str, torch.Tensor] = field(default_factory=dict)
    _gathered: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __repr__(self) -> str:
        tokens = max(self.tokens.values(), default=0)
        return f"RoutingTally(tokens: {tokens}, layers: {len(self.tokens)})"

    def __call__(self, layer: str, c_TE: torch.Tensor) -> None:
        """Add the coefficients of one forward of one layer."""
        before = self.tokens.get(layer, 0)
        after = self.tokens[layer] = before + c_TE.shape[0]
        self._gathered.setdefault(layer, []).append(c_TE.detach())
        if before // _GATHER != after // _GATHER:
            self._sum(layer)

    def _sum(self, layer: str) -> None:
        gathered = self._gathered.pop(layer, [])
        if not gathered:
            return
        c_TE = torch.cat(gathered)
        sums = (
            (self.chosen, (c_TE > 0).sum(0).double()),
            (self.coefficients, c_TE.sum(0, dtype=torch.float64)),
            (self.entropy, -torch.xlogy(c_TE, c_TE).sum(dtype=torch.float64)),
        )
        for table, value in sums:
            table[layer] = table[layer] + value if layer in table else value

    def record(self, layers: Sequence[str]) -> dict[str, Any]:
        """Return the task's part of a routing record, (L, E) tables as nested lists."""
        for layer in layers:
            self._sum(layer)
        counts = [max(1, self.tokens[layer]) for layer in layers]
        return {
            # An adapted head receives the scored positions only.
            "tokens": max(self.tokens[layer] for layer in layers),
            "share": [(self.chosen[m] / n).tolist() for m, n in zip(layers, counts, strict=True)],
            "mean_coefficient": [
                (self.coefficients[m] / n).tolist() for m, n in zip(layers, counts, strict=True)
            ],
            "entropy": [float(self.entropy[m]) / n for m, n in zip(layers, counts, strict=True)],
        }


def observe_requests(lm: GksArrowLM, items: Iterable[TokenPairs]) -> RoutingTally:
    """Tally the routing over items, each a list of (context, continuation) tokens.

    Raises:
        UsageError: The model routes nothing, or its forward does not support token trees.
    """
    attachment = lm.attachment
    if attachment is None:
        raise UsageError("this setting routes nothing; choose one with a library, such as arrow.")
    # Checked first, because the check runs a trial forward, which must not be counted.
    if reason := supports_packed(lm.model, lm.device, lm.max_length):
        raise UsageError(f"routing cannot be observed on this model, as {reason}.")
    tally = RoutingTally()
    attachment.observe(tally)
    try:
        for pairs in items:
            # One row per forward holds an item's whole tree, so nothing is padded or run twice.
            packed_log_likelihoods(
                lm.model,
                pairs,
                device=lm.device,
                max_length=lm.max_length,
                batch_tokens=lm.max_length,
                row_tokens=lm.max_length,
            )
    finally:
        attachment.observe(None)
    return tally


def observe_text(lm: GksArrowLM, text: str) -> tuple[list[str], torch.Tensor]:
    """Route one text and return its tokens and each token's mean coefficients over layers, (T, E).

    Raises:
        UsageError: The text is empty or too long, or the model routes nothing.
    """
    attachment = lm.attachment
    if attachment is None:
        raise UsageError("this setting routes nothing; choose one with a library, such as arrow.")
    ids = lm.tok_encode(text)
    if not 0 < len(ids) <= lm.max_length:
        raise UsageError(
            f"the text has {len(ids)} tokens; from 1 to {lm.max_length} can be routed."
        )
    seen: list[torch.Tensor] = []
    attachment.observe(lambda _layer, c_TE: seen.append(c_TE.float().cpu()))
    try:
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
    finally:
        attachment.observe(None)
    return [lm.tokenizer.decode([token]) for token in ids], torch.stack(seen).mean(0)


def routing_record(lm: GksArrowLM, label: str, tallies: dict[str, RoutingTally]) -> dict[str, Any]:
    """Return a routing record, plain JSON values of the schema `ROUTING`."""
    library = lm.library
    assert library is not None
    assert lm.attachment is not None
    layers = [name for name, update in lm.attachment.layers.items() if update.weights is not None]
    experts = list(library.mixed_adapters(lm.setting))
    ties = [list(group.layers) for group in dict.fromkeys(library.tied.values())]
    return {
        "schema": ROUTING,
        "library": library.name,
        "setting": label,
        "top_k": lm.setting.parameters.get("top_k", len(experts)),
        "experts": experts,
        "layers": layers,
        **({"tied_prototypes": ties} if ties else {}),
        "tasks": {name: tally.record(layers) for name, tally in tallies.items()},
        "provenance": {"content_hash": library.content_hash, **versions()},
    }
