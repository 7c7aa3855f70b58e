"""Row `model`: a whole transformer's forward without its head, for the base, ours and PEFT's.

Two more contestants show the least that our hooks can cost, see `benchmarks.floor`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.floor import floor_transformers
from benchmarks.peers import peft_arrow, peft_setting, twin
from benchmarks.random_library import write_random_library
from benchmarks.record import ModelForward, ModelRow, Phase
from benchmarks.sizes import Sizes, Slice
from benchmarks.subject import Subject
from benchmarks.timing import Call, ratio, synchroniser, time_interleaved
from gks_eval.library.fit import linear_shapes
from gks_eval.library.load import Library, load_library
from gks_eval.model.inject import attach

__all__ = [
    "model_rows",
    "phi3_slice",
    "prefill",
    "slice_rows",
    "subject_rows",
    "three_transformers",
    "timed_forward",
]


def phi3_slice(size: Slice, device: str, dtype: torch.dtype, seed: int) -> Any:
    """Return a Phi-3 with random weights, in evaluation mode."""
    from transformers import AutoModelForCausalLM, Phi3Config

    config = Phi3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    with torch.device(device):  # a GPU draws billions of weights in a second
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model.to(device).eval()


def slice_rows(
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> list[ModelRow]:
    """Measure the slice of Phi-3's width, with adapters on its qkv_proj and o_proj."""
    model = phi3_slice(sizes.slice, device, dtype, seed)
    shapes = {
        name: shape
        for name, shape in linear_shapes(model).items()
        if name.endswith(("qkv_proj", "o_proj"))
    }
    name = f"Phi-3, width {sizes.slice.hidden}, {sizes.slice.layers} layers, random weights"
    with tempfile.TemporaryDirectory(prefix="gks-bench-") as folder:
        library = load_library(
            write_random_library(
                Path(folder) / "library", shapes, experts=sizes.experts, rank=sizes.rank, seed=seed
            )
        )
        return model_rows(
            name, model, library, sizes, rounds=rounds, device=device, seed=seed, report=report
        )


def subject_rows(
    subject: Subject,
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    seed: int,
    report: Callable[[str], None],
) -> list[ModelRow]:
    """Measure a real base with its library."""
    name = f"{subject.name}, {len(subject.library.experts)} experts"
    return model_rows(
        name,
        subject.model,
        subject.library,
        sizes,
        rounds=rounds,
        device=device,
        seed=seed,
        report=report,
    )


def three_transformers(model: nn.Module, library: Library) -> dict[str, Any]:
    """Return the transformers of ``base``, ``routed`` and ``peft``, on the same weights."""
    setting = peft_setting(library)
    routed: Any = twin(model)
    attach(routed, library, setting)
    adapted = peft_arrow(twin(model), library, setting)
    causal: dict[str, Any] = {"base": model, "routed": routed, "peft": adapted.get_base_model()}
    return {who: getattr(one, one.base_model_prefix) for who, one in causal.items()}


@torch.no_grad()
def model_rows(
    name: str,
    model: Any,
    library: Library,
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    seed: int,
    report: Callable[[str], None],
) -> list[ModelRow]:
    """Measure prefill in every shape, and decoding of one token."""
    transformers = three_transformers(model, library) | floor_transformers(model, library)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    rows = []
    for batch, tokens in sizes.prefill:
        report(f"model {name}: prefill {batch}x{tokens}")
        ids = torch.randint(vocabulary, (batch, tokens), generator=generator).to(device)
        calls = {who: prefill(one, ids) for who, one in transformers.items()}
        shape = (batch, tokens, 0)
        forward = timed_forward("prefill", shape, calls, rounds, sizes.least_seconds, device)
        rows.append(_row(name, forward))
    report(f"model {name}: decode after {sizes.cached}")
    ids = torch.randint(vocabulary, (1, sizes.cached + 1), generator=generator).to(device)
    calls = {who: _decode(one, ids) for who, one in transformers.items()}
    shape = (1, 1, sizes.cached)
    forward = timed_forward("decode", shape, calls, rounds, sizes.least_seconds, device)
    rows.append(_row(name, forward))
    return rows


def prefill(transformer: Any, ids: torch.Tensor) -> Call:
    """Return a call that runs all tokens, without a cache."""
    return lambda: transformer(input_ids=ids, use_cache=False)[0]


def _decode(transformer: Any, ids: torch.Tensor) -> Call:
    """Return a call that runs the last token on the cached keys and values of the others."""
    from transformers import DynamicCache

    from gks_eval.scoring.tree_model import cache_argument

    cache = DynamicCache()
    kept = {cache_argument(transformer): cache, "use_cache": True}
    transformer(input_ids=ids[:, :-1], **kept)
    last = ids[:, -1:]

    def call() -> torch.Tensor:
        hidden: torch.Tensor = transformer(input_ids=last, **kept)[0]
        cache.crop(-1)  # drop the token again; crops a view, copies nothing
        return hidden

    return call


def timed_forward(
    phase: Phase,
    shape: tuple[int, int, int],
    calls: dict[str, Call],
    rounds: int,
    least_seconds: float,
    device: str,
) -> ModelForward:
    """Time one forward of every model; `shape` is rows, tokens per row and cached tokens."""
    seconds = time_interleaved(
        calls, rounds, least_seconds=least_seconds, synchronise=synchroniser(device)
    )
    batch, tokens, cached = shape
    return ModelForward(
        phase=phase,
        batch=batch,
        tokens=tokens,
        cached=cached,
        seconds=seconds,
        routed_over_base=ratio(seconds["routed"], seconds["base"]),
    )


def _row(name: str, forward: ModelForward) -> ModelRow:
    peft_over_base = ratio(forward.seconds["peft"], forward.seconds["base"])
    return ModelRow(model=name, peft_over_base=peft_over_base, **dict(forward))
