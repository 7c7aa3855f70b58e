"""Row `layer`: the routed update of one linear layer, ours and PEFT's, next to the base's product.

Only the update is timed, not the layer: the base's product, which both need, would hide the
difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.memory import peak_bytes
from benchmarks.peers import arrow_delta, arrow_layers, peft_arrow, peft_setting, twin
from benchmarks.random_library import write_random_library
from benchmarks.record import LayerRow
from benchmarks.sizes import Sizes
from benchmarks.timing import Call, ratio, synchroniser, time_interleaved
from gks_eval.library.load import load_library
from gks_eval.method.build import build
from gks_eval.method.mixing.products import wide_product
from gks_eval.method.routed import add_update
from gks_eval.method.weights import RoutedWeights

__all__ = ["Contestants", "OneLinear", "contestants", "layer_rows"]


class OneLinear(nn.Module):
    """A model that is one linear layer, for PEFT to adapt."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        output: torch.Tensor = self.linear(x)
        return output


@dataclass(frozen=True)
class Contestants:
    """One layer, ready to run.

    Attributes:
        linear: The base's layer.
        weights: Our routed weights.
        peft: PEFT's layer.
    """

    linear: nn.Linear
    weights: RoutedWeights
    peft: Any

    def calls(self, x_TK: torch.Tensor) -> dict[str, Call]:
        """Return the calls to time on `x_TK`; ``routed`` and ``peft`` return the same update."""
        x_1TK = x_TK.unsqueeze(0)
        calls: dict[str, Call] = {
            "base": lambda: self.linear(x_TK),
            "routed": lambda: add_update(x_TK, self.weights)[0],
            "peft": lambda: arrow_delta(self.peft, x_1TK)[0],
        }
        prototypes_EK = self.weights.directions
        if prototypes_EK is not None:  # 16-bit layers, see `wide_product`
            calls["prototypes"] = lambda: wide_product(x_TK, prototypes_EK)
        return calls


@contextmanager
def contestants(
    width_in: int,
    width_out: int,
    *,
    experts: int,
    rank: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> Iterator[Contestants]:
    """Make one layer with random weights and adapters, one general adapter subtracted.

    Args:
        width_in: K.
        width_out: D.
        experts: E.
        rank: Rank of every adapter.
        device: Device of all tensors.
        dtype: Dtype of everything that is not always float32.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    model = OneLinear(width_in, width_out).to(device, dtype).eval()
    with tempfile.TemporaryDirectory(prefix="gks-bench-") as folder:
        library = load_library(
            write_random_library(
                Path(folder) / "library",
                {"linear": (width_out, width_in)},
                experts=experts,
                rank=rank,
                seed=seed,
            )
        )
        setting = peft_setting(library)
        pairs, general = library.layer("linear", setting)
        adapted = peft_arrow(twin(model), library, setting)
        weights = build(pairs, general, setting, dtype=dtype, device=device)
        yield Contestants(model.linear, weights, arrow_layers(adapted)["linear"])


@torch.no_grad()
def layer_rows(
    sizes: Sizes,
    *,
    rounds: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> list[LayerRow]:
    """Measure every shape with every number of tokens."""
    rows = []
    for width_in, width_out in sizes.layers:
        with contestants(
            width_in,
            width_out,
            experts=sizes.experts,
            rank=sizes.rank,
            device=device,
            dtype=dtype,
            seed=seed,
        ) as layer:
            for tokens in sizes.layer_tokens:
                report(f"layer {width_in}->{width_out}, {tokens} tokens")
                fewer = max(2, rounds // 3) if tokens > sizes.many_tokens else rounds
                rows.append(_row(layer, tokens, fewer, sizes.least_seconds, device, dtype, seed))
    return rows


def _row(
    layer: Contestants,
    tokens: int,
    rounds: int,
    least_seconds: float,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> LayerRow:
    generator = torch.Generator().manual_seed(seed)
    x_TK = torch.randn(tokens, layer.linear.in_features, generator=generator).to(device, dtype)
    calls = layer.calls(x_TK)
    seconds = time_interleaved(
        calls, rounds, least_seconds=least_seconds, synchronise=synchroniser(device)
    )
    ours, theirs = add_update(x_TK, layer.weights)[0], arrow_delta(layer.peft, x_TK[None])[0]
    difference, largest = (ours.float() - theirs.float()).abs().max(), theirs.abs().max()
    del ours, theirs
    return LayerRow(
        width_in=layer.linear.in_features,
        width_out=layer.linear.out_features,
        tokens=tokens,
        seconds=seconds,
        peft_over_routed=ratio(seconds["peft"], seconds["routed"]),
        routed_over_base=ratio(seconds["routed"], seconds["base"]),
        peak_bytes={name: peak_bytes(calls[name], device) for name in ("routed", "peft")},
        max_difference=float(difference),
        largest=float(largest),
    )
