"""A causal language model's transformer and head, called on token trees.

Shapes: B rows, N nodes per row, P tokens of the shared prefix, H hidden.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from gks_eval.method.contexts import Contexts
from gks_eval.method.hook import updates_of
from gks_eval.scoring.head import Head
from gks_eval.scoring.masks import AttentionWindow, additive, tree_mask
from gks_eval.scoring.tree import TreeRow
from gks_eval.scoring.unpadded import unpadded_batch

__all__ = ["CACHE_NAMES", "NotPackable", "SharedPrefix", "TreeModel", "cache_argument"]

SharedPrefix: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of every layer, each (1, heads, P, width)."""

NEEDED = ("input_ids", "attention_mask", "position_ids", "use_cache")
CACHE_NAMES = ("cache", "past_key_values")  # since transformers 5.24, and before
UNPADDED_ON = {"cpu"}  # on a GPU few large calls matter more than padding
FAMILIES_WITH_OWN_MASKS = {"gpt_neo", "bloom", "mpt"}  # made inside the layers, by index in the row


class NotPackable(Exception):  # noqa: N818 - an answer, not an error
    """The model cannot run token trees; the message says why, as the end of a sentence."""


class TreeModel:
    """A model that runs token trees.

    Attributes:
        unpadded: Whether rows from the root are concatenated instead of padded.
        layers: Its decoder layers; empty if they are not found.
        by_context: Whether its routed layers make one choice per context. A row must then be one
            context and what continues it.

    Args:
        model: A transformers causal LM, a PEFT wrapping of one, or one with routed layers.
        device: Where its inputs go.
        max_length: Maximum number of input tokens.

    Raises:
        NotPackable: It lacks a required interface, or its attention is not supported.
    """

    def __init__(self, model: nn.Module, device: torch.device, max_length: int) -> None:
        self.device = device
        self.base, head = _base_and_head(model)
        self.cache_argument = cache_argument(self.base)
        whole: Any = self.base.config
        self.config: Any = whole.get_text_config()
        self.head = Head(head, self.config)
        self.attention = str(getattr(self.config, "_attn_implementation", None))
        if self.attention not in ("sdpa", "eager"):
            raise NotPackable(f"its attention is {self.attention}, not sdpa or eager")
        self.windows = _windows(self.config, max_length)
        self.unpadded = self.attention == "sdpa" and device.type in UNPADDED_ON
        self.long_from = _long_from(self.config, max_length)
        self.layers = _layers(self.base, self.config)
        weights = [update.weights for update in updates_of(model)]
        self.by_context = any(one is not None and one.by_context for one in weights)
        parameter = next(self.base.parameters())
        self.dtype = parameter.dtype if parameter.is_floating_point() else torch.bfloat16

    def is_long(self, length: int) -> bool:
        """Return whether LongRoPE uses its long factors for a sequence of this length."""
        return self.long_from is not None and length > self.long_from

    def prefill(self, tokens: Seq[int], *, long: bool) -> SharedPrefix:
        """Compute the keys and values of a shared prefix.

        Args:
            tokens: The P tokens of the prefix.
            long: Whether its sequences use LongRoPE's long factors.
        """
        from transformers import DynamicCache

        ids, positions = list(tokens), list(range(len(tokens)))
        if long and self.long_from is not None and len(tokens) <= self.long_from:
            # One extra token, dropped afterwards, whose position selects the long factors.
            ids.append(ids[-1])
            positions.append(self.long_from)
        cache = DynamicCache()  # without the config, which would crop windowed layers
        self._call(
            input_ids=torch.tensor([ids], device=self.device),
            attention_mask=None,
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=True,
            **{self.cache_argument: cache},
        )
        return [
            (keys[:, :, : len(tokens)], values[:, :, : len(tokens)]) for keys, values, *_ in cache
        ]

    def hidden(
        self, rows: Seq[TreeRow], prefix: SharedPrefix, *, long: bool
    ) -> tuple[torch.Tensor, list[int]]:
        """Run rows.

        Args:
            rows: Trees that continue `prefix`.
            prefix: As `prefill` gives it, or empty.
            long: Whether their sequences use LongRoPE's long factors.

        Returns:
            Last hidden states, (M, H), and the index at which each row starts. With a shared
            prefix, or if `unpadded` is off, rows are padded on the right to the longest.
        """
        if self.unpadded and not prefix:
            return self._hidden_unpadded(rows)
        before = prefix[0][0].shape[2] if prefix else 0
        width = max(len(row.tokens) for row in rows)
        if not prefix and all(row.is_chain for row in rows):
            ids_BN = self._padded([row.tokens for row in rows], [0] * width)
            with self._routed(rows, width):
                hidden = self._call(input_ids=ids_BN, attention_mask=None, use_cache=False)
            return hidden.flatten(0, 1), [number * width for number in range(len(rows))]
        if self.device.type == "cuda":
            width += -(before + width) % 8  # the fused kernels need aligned masks
        ids_BN = self._padded([row.tokens for row in rows], [0] * width)
        spare = self.long_from if long and self.long_from is not None else 0
        positions_BN = self._padded([row.depths for row in rows], [spare] * width)
        ends_BN = self._padded([row.ends for row in rows], list(range(1, width + 1)))
        with self._routed(rows, width):
            hidden = self._call(
                input_ids=ids_BN,
                attention_mask=self._masks(ends_BN, positions_BN, before),
                position_ids=positions_BN,
                use_cache=bool(prefix),
                **{self.cache_argument: _cache(prefix, len(rows)) if prefix else None},
            )
        return hidden.flatten(0, 1), [number * width for number in range(len(rows))]

    def _hidden_unpadded(self, rows: Seq[TreeRow]) -> tuple[torch.Tensor, list[int]]:
        batch = unpadded_batch(rows, list(self.windows.values()), self.dtype, self.device)
        handles = dict(zip(self.windows, batch.handles(), strict=True))
        with batch.attended(self.config), self._routed(rows):
            hidden = self._call(
                input_ids=self._padded([[t for row in rows for t in row.tokens]], []),
                attention_mask=handles if len(handles) > 1 else next(iter(handles.values())),
                position_ids=self._padded([[d for row in rows for d in row.depths]], []),
                use_cache=False,
            )
        return hidden[0], batch.bounds[:-1]

    def _routed(self, rows: Seq[TreeRow], width: int = 0) -> AbstractContextManager[None]:
        # The last token of a row's context is the first whose successor is scored.
        if not self.by_context:
            return nullcontext()
        own = [row.scored[0][0] + 1 for row in rows]
        sizes = [len(row.tokens) for row in rows]
        return Contexts.of_rows(own, sizes, width, self.device).active()

    def _call(self, **arguments: Any) -> torch.Tensor:
        with torch.no_grad():
            hidden = self.base(**arguments)[0]
        assert isinstance(hidden, torch.Tensor)
        return hidden

    def _padded(self, lists: list[list[int]], padding: list[int]) -> torch.Tensor:
        return torch.tensor([have + padding[len(have) :] for have in lists], device=self.device)

    def _masks(
        self, ends_BN: torch.Tensor, positions_BN: torch.Tensor, prefix: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        masks = {
            kind: tree_mask(ends_BN, positions_BN, prefix, window)
            for kind, window in self.windows.items()
        }
        if self.attention == "eager":  # eager attention adds the mask, and would add True as 1
            masks = {kind: additive(mask, self.dtype) for kind, mask in masks.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def cache_argument(transformer: nn.Module) -> str:
    """Return the transformer's name for its argument of cached keys and values."""
    taken = inspect.signature(transformer.forward).parameters
    return next(name for name in CACHE_NAMES if name in taken)


def _layers(transformer: nn.Module, config: Any) -> list[nn.Module]:
    count = getattr(config, "num_hidden_layers", 0)
    lists = (m for m in transformer.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return list(next(lists, ()))


def _cache(prefix: SharedPrefix, rows: int) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


def _base_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NotPackable("its PEFT adapter adds virtual tokens")
    unwrap: Any = getattr(model, "get_base_model", None)
    if unwrap is not None:  # PEFT's wrapping; its layers are inside
        model = unwrap()
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise NotPackable("it is an encoder-decoder")
    base = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    if not isinstance(base, nn.Module) or not isinstance(head, nn.Module):
        raise NotPackable("its transformer and vocabulary head are not separate modules")
    taken = inspect.signature(base.forward).parameters
    missing = [name for name in NEEDED if name not in taken]
    if not any(name in taken for name in CACHE_NAMES):
        missing.append(CACHE_NAMES[0])
    if missing:
        raise NotPackable(f"its transformer takes no {' and no '.join(missing)}")
    if not hasattr(sys.modules[type(base).__module__], "create_causal_mask"):
        raise NotPackable("its code does not use transformers' masking functions")
    return base, head


def _windows(config: Any, max_length: int) -> dict[str, AttentionWindow]:
    # The attention window of each kind of layer; refuses layers without masked attention.
    if getattr(config, "alibi", False) or config.model_type in FAMILIES_WITH_OWN_MASKS:
        raise NotPackable("its layers place tokens by their index in the row (ALiBi or local)")
    if getattr(config, "index_topk", None) is not None:
        raise NotPackable("its layers choose what they attend to")
    if getattr(config, "use_bidirectional_attention", None) or not getattr(
        config, "is_causal", True
    ):
        raise NotPackable("its attention is bidirectional")
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    known = {
        "full_attention": AttentionWindow(),
        "sliding_attention": AttentionWindow(size=window),
        "chunked_attention": AttentionWindow(chunk=getattr(config, "attention_chunk_size", None)),
    }
    if not kinds:
        return {"": AttentionWindow(size=window)}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise NotPackable(f"it has layers of kind {', '.join(unknown)}")
    if set(kinds) == {"full_attention"} and window is not None and window < max_length:
        raise NotPackable("its configuration has a sliding window but no layer to use it")
    return {kind: known[kind] for kind in known if kind in kinds}


def _long_from(config: Any, max_length: int) -> int | None:
    # The length beyond which LongRoPE uses its long factors.
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    kinds = {str(each.get("rope_type")) for each in ropes}
    if "dynamic" in kinds and max_length > config.max_position_embeddings:
        raise NotPackable("its rotary frequencies depend on the longest text of a batch")
    bounds = {
        int(each["original_max_position_embeddings"])
        for each in ropes
        if each.get("rope_type") == "longrope"
    }
    if len(bounds) > 1:
        raise NotPackable("its layers change their rotary factors at different lengths")
    return next(iter(bounds), None)
