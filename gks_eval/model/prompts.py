"""The prompts of a model's own forwards, for settings that make one choice per context.

The input of a forward without cached tokens is the prompt, padding left out. When decoding with
that forward's cache, one token per step, its choices stay.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gks_eval.errors import UsageError
from gks_eval.method.contexts import Contexts
from gks_eval.scoring.tree_model import CACHE_NAMES

__all__ = ["Prompts"]


class Prompts:
    """Hooks of a causal LM that give its routed layers the prompt that each token belongs to.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = list(inspect.signature(model.forward).parameters)
        self._held: WeakKeyDictionary[Any, Contexts] = WeakKeyDictionary()
        self._active = ExitStack()
        self._contexts: Contexts | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        self._contexts = self._found(given, _cache_in(given))
        self._active.close()
        self._active.enter_context(self._contexts.active())

    def _found(self, given: dict[str, Any], cache: Any) -> Contexts:
        if given.get("labels") is not None:
            raise UsageError(
                "level=sequence chooses experts by the whole input, so a loss over the same tokens "
                "would see the later ones; leave labels out, or use level=token."
            )
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            raise UsageError("level=sequence needs the prompt; give the model its input_ids.")
        rows, length = tokens.shape[:2]
        if cache is not None and int(cache.get_seq_length()):
            held = self._held.get(cache)
            if held is None or length != 1 or rows != held.count:
                raise UsageError(
                    "level=sequence chooses experts by the whole prompt, and here a cache is "
                    "continued by more than the next token of each prompt; run each prompt in one "
                    "piece (no prefill_chunk_size, no assistant model), or use level=token."
                )
            return held.next_token()
        mask = given.get("attention_mask")
        if mask is None:
            mask = torch.ones(rows, length, device=tokens.device)
        if tuple(mask.shape) != (rows, length):
            raise UsageError(
                f"level=sequence needs an attention_mask of shape {(rows, length)}, to leave out "
                f"padding, and this one has {tuple(mask.shape)}; use level=token."
            )
        return Contexts.of_prompts(mask != 0)

    def _after(
        self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._active.close()
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        cache = _cache_in(given)
        if cache is None:
            cache = _cache_in(getattr(output, "__dict__", {}))
        if cache is not None and self._contexts is not None and output is not None:
            self._held[cache] = self._contexts
        self._contexts = None


def _cache_in(given: dict[str, Any]) -> Any:
    found = (given.get(name) for name in CACHE_NAMES)
    return next((cache for cache in found if cache is not None), None)
