"""Row `full`: Phi-3-mini's full size with random weights, in bfloat16 and NF4, for one GPU.

Weights are made on the device, layer by layer, so they need neither the network nor the host's
memory. The base and the routed model share them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from benchmarks.capture import captured, static_decode
from benchmarks.peers import peft_setting, twin
from benchmarks.random_library import write_random_library
from benchmarks.record import FullEvaluation, FullModel, Phase
from benchmarks.sizes import Sizes
from benchmarks.table_one import DISTINCT_PER_ITEM, items_of_table, texts_like_table
from benchmarks.timing import Call, per_second, synchroniser, time_interleaved
from benchmarks.whole_model import phi3_slice, prefill, timed_forward
from gks_eval.library.fit import linear_shapes
from gks_eval.library.load import load_library
from gks_eval.model.inject import attach
from gks_eval.model.quantized import keep_portable_layout
from gks_eval.scoring import PackedCounts, packed_log_likelihoods

__all__ = ["full_model_rows", "to_nf4"]

Weights = Literal["bfloat16", "nf4"]


@torch.no_grad()
def full_model_rows(
    sizes: Sizes, *, rounds: int, device: str, seed: int, report: Callable[[str], None]
) -> list[FullModel]:
    """Measure prefill, decoding and an evaluation with each kind of weights.

    Args:
        sizes: The model and the shapes.
        rounds: Rounds of the forwards; evaluations run a third of them.
        device: Where the model is made and runs.
        seed: Of weights, adapters and tokens.
        report: Called with progress messages.
    """
    found = []
    for weights in get_args(Weights):
        report(f"full model, {weights}: weights")
        model = phi3_slice(sizes.full, device, torch.bfloat16, seed)
        if weights == "nf4":
            to_nf4(model)
            keep_portable_layout(model)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        found.append(_measured(model, weights, sizes, rounds, device, seed, report))
        del model
    return found


def to_nf4(model: nn.Module) -> None:
    """Quantise the linear layers of a model in place, one by one, all but the head.

    They have the format of `gks_eval.model.load_base`: NF4 without double quantisation,
    computing in bfloat16.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    plain = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and not name.endswith("lm_head")
    ]
    for name, layer in plain:
        with torch.device("meta"):
            packed = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=False,
                quant_type="nf4",
            )
        device = layer.weight.device
        packed.weight = Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4"
        ).to(device)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed.eval())


def _measured(
    model: Any,
    weights: Weights,
    sizes: Sizes,
    rounds: int,
    device: str,
    seed: int,
    report: Callable[[str], None],
) -> FullModel:
    shapes = {
        name: shape
        for name, shape in linear_shapes(model).items()
        if name.endswith(("qkv_proj", "o_proj"))
    }
    with tempfile.TemporaryDirectory(prefix="gks-bench-") as folder:
        library = load_library(
            write_random_library(
                Path(folder) / "library", shapes, experts=sizes.experts, rank=sizes.rank, seed=seed
            )
        )
        routed: Any = twin(model)
        attach(routed, library, peft_setting(library))
    models = {"base": model, "routed": routed}
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    forwards = []
    for batch, tokens in sizes.full_prefill:
        report(f"full model, {weights}: prefill {batch}x{tokens}")
        ids = torch.randint(vocabulary, (batch, tokens), generator=generator).to(device)
        calls: dict[str, Call] = {who: prefill(one.model, ids) for who, one in models.items()}
        shape = (batch, tokens, 0)
        forwards.append(timed_forward("prefill", shape, calls, rounds, sizes.least_seconds, device))
    decoding: tuple[tuple[Phase, Callable[[Call, str], Call]], ...]
    decoding = (("decode", _as_it_is), ("decode, captured", captured))
    for name, prepare in decoding:
        report(f"full model, {weights}: {name} after {sizes.cached}")
        ids = torch.randint(vocabulary, (1, sizes.cached + 1), generator=generator).to(device)
        calls = {who: prepare(static_decode(one.model, ids), device) for who, one in models.items()}
        shape = (1, 1, sizes.cached)
        forwards.append(timed_forward(name, shape, calls, rounds, sizes.least_seconds, device))
    report(f"full model, {weights}: evaluation")
    return FullModel(
        weights=weights,
        layers=sizes.full.layers,
        hidden=sizes.full.hidden,
        forwards=tuple(forwards),
        evaluation=_evaluation(models, sizes, max(1, rounds // 3), device, seed),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None,
    )


def _as_it_is(call: Call, device: str) -> Call:
    del device
    return call


def _evaluation(
    models: dict[str, Any], sizes: Sizes, rounds: int, device: str, seed: int
) -> FullEvaluation:
    """Score whole texts as the paper does, and project the time of its Table 1."""
    texts = texts_like_table(sizes.full_items, models["base"].config.vocab_size, seed)
    counts = PackedCounts()
    score = partial(packed_log_likelihoods, device=device, max_length=512)
    calls = {who: partial(score, one, texts) for who, one in models.items()}
    score(models["routed"], texts, counts=counts)
    seconds = time_interleaved(
        calls, rounds, warm_ups=dict.fromkeys(calls, _nothing), synchronise=synchroniser(device)
    )
    rate = per_second(counts.distinct_tokens, seconds["routed"])
    items, settings = items_of_table()
    tokens = sum(DISTINCT_PER_ITEM[column] * number for column, number in items.items())
    return FullEvaluation(
        requests=counts.requests,
        distinct_tokens=counts.distinct_tokens,
        computed_tokens=counts.computed_tokens,
        seconds=seconds,
        tokens_per_second=rate,
        table_tokens=tokens,
        table_settings=settings,
        table_minutes=settings * tokens / rate / 60,
    )


def _nothing() -> None:
    return None
