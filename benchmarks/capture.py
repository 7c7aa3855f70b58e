"""Decoding as a CUDA graph: one launch per token instead of hundreds."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.timing import Call

__all__ = ["captured", "static_decode"]

WARM_UPS = 3
"""Calls before capture: kernels are compiled, and libraries allocate their workspaces."""


def static_decode(transformer: Any, ids: torch.Tensor) -> Call:
    """Return a call that runs the last token on the cached keys and values of the others.

    The cache has fixed addresses and shapes, and every call leaves it as it was.
    """
    from transformers import StaticCache

    from gks_eval.scoring.tree_model import cache_argument

    cache: Any = StaticCache(config=transformer.config, max_cache_len=ids.shape[1])
    kept = {cache_argument(transformer): cache, "use_cache": True}
    transformer(input_ids=ids[:, :-1], **kept)
    last = ids[:, -1:]
    lengths: list[torch.Tensor] = [layer.cumulative_length for layer in cache.layers]

    def call() -> torch.Tensor:
        hidden: torch.Tensor = transformer(input_ids=last, **kept)[0]
        torch._foreach_sub_(lengths, 1)
        return hidden

    return call


def captured(call: Call, device: str) -> Call:
    """Return a call that replays `call` as a CUDA graph; on a CPU, `call` itself.

    The call must not wait for the device or depend on values, and its inputs keep their addresses.
    """
    if not device.startswith("cuda"):
        return call
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

    def replay() -> object:
        graph.replay()
        return result

    return replay
