"""The vocabulary head, applied in float32 to the scored positions only.

Shapes: M positions, S scored tokens (several may share a position), H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gks_eval.method.hook import RoutedUpdate
from gks_eval.method.mixing.split import accumulates_wide, wide_mm

__all__ = ["Answers", "Head"]

Answers = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities and greedy marks of scored tokens."""

CHUNK_BYTES = {"cpu": 128 << 20}
CHUNK_BYTES_DEVICE = 512 << 20
CACHED_ROWS = 16
BLOCK_ROWS = 8192


class Head:
    """Log-probabilities of tokens from hidden states.

    ``logits = cap * tanh(scale * (W h + b) / cap)``; most models have no cap and scale 1. The
    product with a plain 16-bit linear layer is accumulated and returned in float32, because a
    16-bit logit of 20 is off by up to 0.06.

    Args:
        module: The output embeddings, a module that maps (..., H) to (..., V).
        config: The text configuration, read for Gemma's cap and Granite's and Cohere's scales.
    """

    def __init__(self, module: nn.Module, config: Any) -> None:
        self.module = module
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        divisor = getattr(config, "logits_scaling", None) or 1.0
        self.scale = (getattr(config, "logit_scale", None) or 1.0) / divisor
        # The exact type, because a quantised layer does not compute x W, and no foreign hooks. The
        # update of a routed head is added to the float32 product.
        self.updates = list(module._forward_hooks.values())
        self.is_plain = (
            type(module) is nn.Linear
            and not module._forward_pre_hooks
            and all(isinstance(hook, RoutedUpdate) for hook in self.updates)
            and module.weight.device.type != "meta"
        )

    def log_probs(
        self, hidden_MH: torch.Tensor, position_S: torch.Tensor, token_S: torch.Tensor
    ) -> Answers:
        """Score tokens at positions, as `started`, and wait for the result."""
        return self.started(hidden_MH, position_S, token_S)()

    @torch.no_grad()  # in-place steps would keep the graph of every batch alive
    def started(
        self, hidden_MH: torch.Tensor, position_S: torch.Tensor, token_S: torch.Tensor
    ) -> Callable[[], Answers]:
        """Score tokens at positions, in chunks whose logits fit into bounded memory.

        Args:
            hidden_MH: Last hidden states.
            position_S: For each scored token, the index of its hidden state.
            token_S: The tokens.

        Returns:
            A function that waits for the device and returns their log-probabilities, float32 (S,),
            and whether each is the argmax of its position, bool (S,); both on the CPU.
        """
        if self.is_plain:
            hidden_MH = hidden_MH.to(next(self.module.parameters()).device)
        device = hidden_MH.device
        # Chunks are divided on the CPU: a mask on a GPU would wait for it, in every chunk.
        position_S, token_S = position_S.cpu(), token_S.cpu()
        order, log_probs, greedy = [], [], []
        step, start = 1, 0  # the first position gives the vocabulary's size
        while start < hidden_MH.shape[0]:
            chunk = hidden_MH[start : start + step]
            with torch.autocast(device.type, enabled=False):
                logits = self._logits(chunk)
            logits = logits.to(device)
            here = ((position_S >= start) & (position_S < start + step)).nonzero()[:, 0]
            row, token = (position_S[here] - start).to(device), token_S[here].to(device)
            values, firsts = _log_softmax_at(logits, row, token)
            order.append(here)
            log_probs.append(values)
            greedy.append(firsts)
            start += step
            budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES_DEVICE)
            step = max(1, budget // (4 * logits.shape[-1]))
        on_cuda = device.type == "cuda"
        found = [torch.cat(parts).to("cpu", non_blocking=on_cuda) for parts in (log_probs, greedy)]
        copied = torch.cuda.current_stream(device).record_event() if on_cuda else None

        def answers() -> Answers:
            if copied is not None:
                copied.synchronize()
            order_S = torch.cat(order)
            log_prob_S, greedy_S = (torch.empty_like(one) for one in found)
            log_prob_S[order_S], greedy_S[order_S] = found
            return log_prob_S, greedy_S

        return answers

    def _logits(self, hidden_MH: torch.Tensor) -> torch.Tensor:
        product = self._wide_product if self.is_plain else self.module
        logits: torch.Tensor = product(hidden_MH).float()
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    def _wide_product(self, hidden_MH: torch.Tensor) -> torch.Tensor:
        weight_VH, bias_V = self.module.weight, self.module.bias
        assert isinstance(weight_VH, torch.Tensor)
        if weight_VH.dtype == torch.float32:
            logits = hidden_MH.float() @ weight_VH.t()
        else:
            logits = self._widened(hidden_MH.to(weight_VH.dtype), weight_VH)
        if isinstance(bias_V, torch.Tensor):
            logits += bias_V.float()
        for update in self.updates:
            logits = update(self.module, (hidden_MH,), {}, logits)
        return logits

    def _widened(self, hidden_MH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        if accumulates_wide(hidden_MH.device, weight_VH.dtype):
            return wide_mm(hidden_MH, weight_VH)
        logits = hidden_MH.new_empty(hidden_MH.shape[0], weight_VH.shape[0], dtype=torch.float32)
        wide_MH = hidden_MH.float()
        for start in range(0, weight_VH.shape[0], BLOCK_ROWS):
            block = weight_VH[start : start + BLOCK_ROWS].float()
            logits[:, start : start + BLOCK_ROWS] = wide_MH @ block.t()
        return logits


def _log_softmax_at(
    logits_MV: torch.Tensor, row_S: torch.Tensor, token_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    highest_M = logits_MV.new_empty(logits_MV.shape[0])
    norm_M = torch.empty_like(highest_M)
    # A few rows at a time stay in a CPU's cache between steps.
    rows = CACHED_ROWS if logits_MV.device.type == "cpu" else max(1, logits_MV.shape[0])
    shifted = torch.empty_like(logits_MV[:rows])
    for start in range(0, logits_MV.shape[0], rows):
        block, part = logits_MV[start : start + rows], slice(start, start + rows)
        torch.amax(block, dim=-1, out=highest_M[part])
        scratch = torch.sub(block, highest_M[part, None], out=shifted[: block.shape[0]])
        torch.sum(scratch.exp_(), dim=-1, out=norm_M[part])
    value_S = logits_MV[row_S, token_S]
    if logits_MV.device.type == "cpu":
        greedy_S = value_S == highest_M[row_S]
        # Among equal logits, argmax takes the first. Only few rows need this slow search.
        greedy_S[greedy_S.clone()] = logits_MV[row_S[greedy_S]].argmax(dim=-1) == token_S[greedy_S]
    else:
        greedy_S = logits_MV.argmax(dim=-1)[row_S] == token_S
    return value_S - highest_M[row_S] - norm_M.log_()[row_S], greedy_S
